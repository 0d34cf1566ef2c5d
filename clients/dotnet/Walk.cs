// Walks the table of cases: SignOutWalk CASES TARGETS. Speaks with clients/run by lines on standard input and output.

using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Cognito.Signout.V1;
using Grpc.Core;
using Grpc.Health.V1;

var table = JsonNode.Parse(File.ReadAllText(args[0]))!;
var walk = new Walk(JsonNode.Parse(File.ReadAllText(args[1]))!);
foreach (var item in table["cases"]!.AsArray())
{
    if (item!["in"] is JsonArray languages && !languages.Any(language => (string?)language == "dotnet"))
    {
        continue;
    }
    var name = (string)item["name"]!;
    try
    {
        Walk.Ask($"begin {name}");
        foreach (var step in item["steps"]!.AsArray())
        {
            var all = table["defaults"]!.DeepClone().AsObject();
            foreach (var (key, value) in step!.AsObject())
            {
                all[key] = value?.DeepClone();
            }
            await walk.RunAsync(all);
        }
        Console.WriteLine($"pass {name}");
    }
    catch (Exception error)
    {
        Console.WriteLine($"fail {name} :: {error.Message.ReplaceLineEndings(" ")}");
    }
}

internal sealed class Walk(JsonNode targets)
{
    // Clients outlive a case, because a connection that survives is what some cases are about.
    private readonly Dictionary<string, SignOutClient> clients = [];
    private CancellationTokenSource cancel = new();
    private Task<AdminUserGlobalSignOutResponse>? started;
    private IAsyncEnumerator<HealthCheckResponse>? watch;

    public async Task RunAsync(JsonObject step)
    {
        string pool = Text(step, "pool"), user = Text(step, "user");
        var timeout = TimeSpan.FromMilliseconds((int)step["deadline_ms"]!);
        switch (Text(step, "do"))
        {
            case "ask":
                Ask(Text(step, "what"));
                break;
            case "call":
                await Timed(step, client => client.AttemptAsync(
                    pool, user, DateTime.UtcNow + timeout, (string?)step["traceparent"], false, CancellationToken.None));
                break;
            case "sign_out":
                await Timed(step, client => client.SignOutAsync(pool, user, timeout));
                break;
            case "start":
                cancel = new CancellationTokenSource();
                started = Dial(step).AttemptAsync(
                    pool, user, DateTime.UtcNow + timeout, null, step.ContainsKey("wait_for_ready"), cancel.Token);
                break;
            case "cancel":
                cancel.Cancel();
                Check(step, await Seen(started!));
                break;
            case "finish":
                Check(step, await Seen(started!));
                break;
            case "watch":
                watch = Dial(step).WatchHealth(Text(step, "service")).GetAsyncEnumerator();
                break;
            case "seen":
                await watch!.MoveNextAsync();
                if (Name(watch.Current.Status.ToString()) != Text(step, "status"))
                {
                    throw new InvalidOperationException($"health is {watch.Current.Status}, not {step["status"]}");
                }
                break;
            case "ended":
                await EndedAsync(Text(step, "status"));
                break;
            default:
                throw new InvalidOperationException($"no such step: {step["do"]}");
        }
    }

    public static void Ask(string what)
    {
        Console.WriteLine($"ask {what}");
        var reply = Console.ReadLine();
        if (reply != "done")
        {
            throw new InvalidOperationException($"{what}: {reply}");
        }
    }

    private async Task Timed(JsonObject step, Func<SignOutClient, Task<AdminUserGlobalSignOutResponse>> call)
    {
        var client = Dial(step);
        var clock = Stopwatch.StartNew();
        var actual = await Seen(call(client));
        var took = clock.ElapsedMilliseconds;
        Check(step, actual);
        if (took < ((long?)step["at_least_ms"] ?? 0) || took > ((long?)step["at_most_ms"] ?? took))
        {
            throw new InvalidOperationException($"it took {took} ms");
        }
    }

    private async Task EndedAsync(string status)
    {
        try
        {
            while (await watch!.MoveNextAsync())
            {
                if (Name(watch.Current.Status.ToString()) != status)
                {
                    throw new InvalidOperationException($"the watch went on with {watch.Current.Status}");
                }
            }
        }
        catch (RpcException)
        {
            // As good an end as any.
        }
    }

    private SignOutClient Dial(JsonObject step)
    {
        var name = Text(step, "over");
        if (step.ContainsKey("fresh") || !clients.TryGetValue(name, out var client))
        {
            var target = targets[name]!;
            client = new SignOutClient(new Reach((string)target["addresses"]![0]!, (string?)target["ca"], (string?)target["cert"],
                (string?)target["key"], (string?)target["token_file"]));
            clients[name] = client;
        }
        return client;
    }

    /// <summary>What the table compares, as text.</summary>
    private static async Task<Dictionary<string, string>> Seen(Task<AdminUserGlobalSignOutResponse> call)
    {
        try
        {
            var answer = await call;
            return new()
            {
                ["code"] = "OK",
                ["request_id"] = Text(answer.AwsRequestId != ""),
                ["signed_out_at"] = Text(answer.SignedOutAt is not null),
            };
        }
        catch (SignOutFailedException failed)
        {
            return new()
            {
                ["code"] = Name(failed.Code.ToString()),
                ["reason"] = failed.Reason,
                ["fault"] = failed.Fault,
                ["retryable"] = Text(failed.Retryable),
                ["outcome"] = failed.Outcome,
                ["aws_error_code"] = failed.Metadata.GetValueOrDefault("aws_error_code", ""),
                ["retry_after"] = Text(failed.RetryAfter is not null),
                ["request_id"] = Text(failed.RequestId != ""),
                ["fields"] = string.Join(",", failed.Fields),
                ["does"] = failed.Does.ToString().ToLowerInvariant(),
            };
        }
    }

    private static void Check(JsonObject step, Dictionary<string, string> actual)
    {
        var wrong = step["expect"]!.AsObject()
            .Where(entry => actual.GetValueOrDefault(entry.Key) != (string?)entry.Value)
            .Select(entry => $"{entry.Key} is {actual.GetValueOrDefault(entry.Key)}, not {entry.Value}")
            .ToList();
        if (wrong.Count > 0)
        {
            throw new InvalidOperationException(string.Join("; ", wrong));
        }
    }

    /// <summary>NotServing as NOT_SERVING, which is how every other language writes it.</summary>
    private static string Name(string name) => Regex.Replace(name, "(?<=[a-z])(?=[A-Z])", "_").ToUpperInvariant();

    private static string Text(bool truth) => truth ? "true" : "false";

    private static string Text(JsonObject step, string key) => (string?)step[key] ?? "";
}
