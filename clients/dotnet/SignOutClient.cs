using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using Cognito.Signout.V1;
using Google.Rpc;
using Grpc.Core;
using Grpc.Health.V1;
using Grpc.Net.Client;

/// <summary>What to do about a failure.</summary>
public enum Advice
{
    /// <summary>Another attempt may help.</summary>
    Retry,

    /// <summary>The caller has to know.</summary>
    Raise,

    /// <summary>Somebody has to act, and the caller has to know.</summary>
    Alert,
}

/// <summary>Why a user was not signed out, or perhaps not: Outcome "unknown" means that it may have happened.</summary>
public sealed class SignOutFailedException : Exception
{
    public SignOutFailedException(RpcException error)
        : base(error.Message, error)
    {
        // A TLS handshake that fails is Internal here and Unavailable in every other gRPC library.
        var handshake = error.Status.DebugException is HttpRequestException { HttpRequestError: HttpRequestError.SecureConnectionError };
        Code = handshake ? StatusCode.Unavailable : error.StatusCode;
        // An answer without details: it was the gRPC library that failed.
        var status = error.GetRpcStatus();
        var info = status?.GetDetail<ErrorInfo>();
        Reason = info?.Reason ?? "";
        Metadata = info is null ? new Dictionary<string, string>() : new Dictionary<string, string>(info.Metadata);
        RetryAfter = status?.GetDetail<RetryInfo>()?.RetryDelay.ToTimeSpan();
        RequestId = status?.GetDetail<RequestInfo>()?.RequestId ?? "";
        Fields = status?.GetDetail<BadRequest>()?.FieldViolations.Select(violation => violation.Field).ToList() ?? [];
    }

    public StatusCode Code { get; }
    public string Reason { get; }
    public Dictionary<string, string> Metadata { get; }
    public TimeSpan? RetryAfter { get; }
    public string RequestId { get; }
    public List<string> Fields { get; }
    public string Fault => Metadata.GetValueOrDefault("fault", "");
    public string Outcome => Metadata.GetValueOrDefault("outcome", "unknown");

    // Without details, only UNAVAILABLE says that another attempt may help.
    public bool Retryable => Reason == "" ? Code == StatusCode.Unavailable : Metadata.GetValueOrDefault("retryable") == "true";

    public Advice Does => this switch
    {
        // Nobody waits any more; a new call is a new decision.
        { Code: StatusCode.DeadlineExceeded or StatusCode.Cancelled } => Advice.Raise,
        { Retryable: true } => Advice.Retry,
        { Fault: "sidecar" or "aws" } => Advice.Alert,
        _ => Advice.Raise,
    };
}

/// <summary>How to reach the sidecar: files for mTLS; TokenFile is read anew for every call, and sent over TLS only.</summary>
public sealed record Reach(string Address, string? Ca = null, string? Cert = null, string? Key = null, string? TokenFile = null);

/// <summary>Signs users out of Amazon Cognito, everywhere, through the sidecar. One for each process.</summary>
public sealed class SignOutClient : IDisposable
{
    private const int MaxAttempts = 3;
    private readonly GrpcChannel channel;
    private readonly SignOutService.SignOutServiceClient stub;

    public SignOutClient(Reach reach)
    {
        if (reach.TokenFile is not null && reach.Ca is null)
        {
            throw new ArgumentException("a token is not sent without TLS", nameof(reach));
        }
        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = true };
        var scheme = reach.Ca is null ? "http" : "https";
        var uri = $"{scheme}://{reach.Address}";
        if (reach.Address.StartsWith("unix:", StringComparison.Ordinal))
        {
            var end = new UnixDomainSocketEndPoint(reach.Address["unix:".Length..]);
            handler.ConnectCallback = async (_, cancelled) =>
            {
                var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                try
                {
                    await socket.ConnectAsync(end, cancelled);
                    return new NetworkStream(socket, ownsSocket: true);
                }
                catch
                {
                    socket.Dispose();
                    throw;
                }
            };
            uri = $"{scheme}://localhost";
        }
        if (reach.Ca is not null)
        {
            handler.SslOptions = MutualTls(reach);
        }
        var options = new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true };
        if (reach.TokenFile is not null)
        {
            var token = CallCredentials.FromInterceptor(async (_, metadata) =>
                metadata.Add("authorization", $"Bearer {(await File.ReadAllTextAsync(reach.TokenFile)).Trim()}"));
            options.Credentials = ChannelCredentials.Create(ChannelCredentials.SecureSsl, token);
        }
        channel = GrpcChannel.ForAddress(uri, options);
        stub = new SignOutService.SignOutServiceClient(channel);
    }

    /// <summary>Tries again as the sidecar advises, within the timeout (10 s if it is null).</summary>
    public async Task<AdminUserGlobalSignOutResponse> SignOutAsync(
        string userPoolId, string username, TimeSpan? timeout = null, CancellationToken cancelled = default)
    {
        var deadline = DateTime.UtcNow + (timeout ?? TimeSpan.FromSeconds(10));
        for (var attempt = 1; ; attempt++)
        {
            try
            {
                return await AttemptAsync(userPoolId, username, deadline, null, false, cancelled);
            }
            catch (SignOutFailedException failed)
            {
                if (failed.Does == Advice.Alert)
                {
                    Console.Error.WriteLine($"ALERT: sign-outs do not work: {failed.Message} (AWS request id {failed.RequestId})");
                }
                var wait = failed.RetryAfter ?? TimeSpan.FromMilliseconds(Random.Shared.Next(100 << attempt));
                if (failed.Does != Advice.Retry || attempt == MaxAttempts || DateTime.UtcNow + wait >= deadline)
                {
                    throw;
                }
                await Task.Delay(wait, cancelled);
            }
        }
    }

    /// <summary>Tries once. HttpClient sends the W3C trace context of Activity.Current by itself.</summary>
    public async Task<AdminUserGlobalSignOutResponse> AttemptAsync(
        string userPoolId, string username, DateTime deadline, string? traceparent, bool waitForReady, CancellationToken cancelled)
    {
        var request = new AdminUserGlobalSignOutRequest { UserPoolId = userPoolId, Username = username };
        var headers = new Metadata();
        if (traceparent is not null)
        {
            headers.Add("traceparent", traceparent);
        }
        try
        {
            var options = new CallOptions(headers, deadline, cancelled).WithWaitForReady(waitForReady);
            return await stub.AdminUserGlobalSignOutAsync(request, options);
        }
        catch (RpcException error)
        {
            throw new SignOutFailedException(error);
        }
    }

    /// <summary>SERVING, NOT_SERVING and so on, as they change.</summary>
    public IAsyncEnumerable<HealthCheckResponse> WatchHealth(string service = "", CancellationToken cancelled = default) =>
        new Health.HealthClient(channel)
            .Watch(new HealthCheckRequest { Service = service }, cancellationToken: cancelled)
            .ResponseStream.ReadAllAsync(cancelled);

    public void Dispose() => channel.Dispose();

    private static SslClientAuthenticationOptions MutualTls(Reach reach)
    {
        var authorities = new X509Certificate2Collection();
        authorities.ImportFromPemFile(reach.Ca!);
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
        };
        policy.CustomTrustStore.AddRange(authorities);
        var options = new SslClientAuthenticationOptions { CertificateChainPolicy = policy };
        if (reach.Cert is not null)
        {
            options.ClientCertificates = new X509CertificateCollection { X509Certificate2.CreateFromPemFile(reach.Cert, reach.Key) };
        }
        return options;
    }
}
