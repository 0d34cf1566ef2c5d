package signout;

import cognito.signout.v1.SignOut.AdminUserGlobalSignOutResponse;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonPrimitive;
import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import io.grpc.StatusOr;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckResponse;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;

/** Walks the table of cases: Walk CASES TARGETS. Speaks with clients/run by lines on standard input and output. */
public final class Walk {
    private static final BufferedReader REPLIES = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    // Clients outlive a case, because a connection that survives is what some cases are about.
    private static final Map<String, SignOutClient> CLIENTS = new HashMap<>();
    private static JsonObject targets;

    private ListenableFuture<AdminUserGlobalSignOutResponse> started;
    private Iterator<HealthCheckResponse> watch;

    public static void main(String[] args) throws Exception {
        JsonObject table = read(args[0]);
        targets = read(args[1]);
        NameResolverRegistry.getDefaultRegistry().register(new AddressList());
        for (JsonElement element : table.getAsJsonArray("cases")) {
            JsonObject item = element.getAsJsonObject();
            if (item.has("in") && !item.getAsJsonArray("in").contains(new JsonPrimitive("java"))) {
                continue;
            }
            String name = item.get("name").getAsString();
            try {
                ask("begin " + name);
                var walk = new Walk();
                for (JsonElement step : item.getAsJsonArray("steps")) {
                    var all = table.getAsJsonObject("defaults").deepCopy();
                    step.getAsJsonObject().entrySet().forEach(entry -> all.add(entry.getKey(), entry.getValue()));
                    walk.run(all);
                }
                OUT.println("pass " + name);
            } catch (Exception | AssertionError error) {
                OUT.println("fail " + name + " :: " + error.toString().replace('\n', ' '));
            }
        }
        System.exit(0); // channels have threads of their own
    }

    private void run(JsonObject step) throws Exception {
        switch (text(step, "do")) {
            case "ask" -> ask(text(step, "what"));
            case "call" -> timed(step, (client, timeout) ->
                    client.attempt(text(step, "pool"), text(step, "user"), timeout, text(step, "traceparent")));
            case "sign_out" -> timed(step, (client, timeout) -> client.signOut(text(step, "pool"), text(step, "user"), timeout));
            case "start" -> started = dial(step)
                    .start(text(step, "pool"), text(step, "user"), timeout(step), null, step.has("wait_for_ready"));
            case "cancel" -> {
                started.cancel(true);
                check(step, seen(() -> SignOutClient.await(started)));
            }
            case "finish" -> check(step, seen(() -> SignOutClient.await(started)));
            case "watch" -> watch = dial(step).watchHealth(text(step, "service"));
            case "seen" -> {
                String status = watch.next().getStatus().name();
                if (!status.equals(text(step, "status"))) {
                    throw new AssertionError("health is " + status + ", not " + text(step, "status"));
                }
            }
            case "ended" -> ended(text(step, "status"));
            case "gather" -> gather(step);
            default -> throw new AssertionError("no such step: " + step);
        }
    }

    private interface Call {
        AdminUserGlobalSignOutResponse with(SignOutClient client, Duration timeout) throws SignOutFailed, InterruptedException;
    }

    private interface Answer {
        AdminUserGlobalSignOutResponse get() throws SignOutFailed, InterruptedException;
    }

    private void timed(JsonObject step, Call call) throws Exception {
        SignOutClient client = dial(step);
        long began = System.nanoTime();
        var actual = seen(() -> call.with(client, timeout(step)));
        long took = (System.nanoTime() - began) / 1_000_000;
        check(step, actual);
        if (step.has("at_least_ms") && took < step.get("at_least_ms").getAsLong()
                || step.has("at_most_ms") && took > step.get("at_most_ms").getAsLong()) {
            throw new AssertionError("it took " + took + " ms");
        }
    }

    private void ended(String status) {
        try {
            while (watch.hasNext()) {
                String other = watch.next().getStatus().name();
                if (!other.equals(status)) {
                    throw new AssertionError("the watch went on with " + other);
                }
            }
        } catch (StatusRuntimeException end) {
            // As good an end as any.
        }
    }

    private void gather(JsonObject step) throws Exception {
        SignOutClient client = dial(step);
        long deadline = System.nanoTime() + Duration.ofSeconds(10).toNanos();
        String answeredBy = "";
        while (!answeredBy.equals(text(step, "answered_by"))) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("answered by " + answeredBy);
            }
            var by = new TreeSet<String>();
            for (int i = 0; i < step.get("times").getAsInt(); i++) {
                by.add(client.attempt(text(step, "pool"), text(step, "user"), Duration.ofSeconds(5), null).getAwsRequestId());
            }
            answeredBy = String.join(",", by);
        }
    }

    private static SignOutClient dial(JsonObject step) throws IOException {
        String name = text(step, "over");
        if (step.has("fresh") || !CLIENTS.containsKey(name)) {
            JsonObject target = targets.getAsJsonObject(name);
            List<String> addresses = target.getAsJsonArray("addresses").asList().stream().map(JsonElement::getAsString).toList();
            // In production the name of a headless service: dns:///NAME:PORT.
            String address = addresses.size() == 1 ? addresses.get(0) : "list:///" + String.join(",", addresses);
            CLIENTS.put(name, new SignOutClient(new SignOutClient.Reach(address, text(target, "ca"), text(target, "cert"),
                    text(target, "key"), text(target, "token_file"), text(target, "service_config"))));
        }
        return CLIENTS.get(name);
    }

    /** What the table compares, as text. */
    private static Map<String, String> seen(Answer answer) throws InterruptedException {
        try {
            var done = answer.get();
            return Map.of(
                    "code", "OK",
                    "request_id", String.valueOf(!done.getAwsRequestId().isEmpty()),
                    "signed_out_at", String.valueOf(done.hasSignedOutAt()));
        } catch (SignOutFailed failed) {
            return Map.of(
                    "code", failed.code.name(),
                    "reason", failed.reason,
                    "fault", failed.fault(),
                    "retryable", String.valueOf(failed.retryable()),
                    "outcome", failed.outcome(),
                    "aws_error_code", failed.metadata.getOrDefault("aws_error_code", ""),
                    "retry_after", String.valueOf(failed.retryAfter != null),
                    "request_id", String.valueOf(!failed.requestId.isEmpty()),
                    "fields", String.join(",", failed.fields),
                    "does", failed.does().name().toLowerCase(Locale.ROOT));
        }
    }

    private static void check(JsonObject step, Map<String, String> actual) {
        var wrong = new ArrayList<String>();
        step.getAsJsonObject("expect").entrySet().forEach(entry -> {
            String value = entry.getValue().getAsString();
            if (!value.equals(actual.get(entry.getKey()))) {
                wrong.add(entry.getKey() + " is " + actual.get(entry.getKey()) + ", not " + value);
            }
        });
        if (!wrong.isEmpty()) {
            throw new AssertionError(String.join("; ", wrong));
        }
    }

    private static void ask(String what) throws IOException {
        OUT.println("ask " + what);
        String reply = REPLIES.readLine();
        if (!"done".equals(reply)) {
            throw new AssertionError(what + ": " + reply);
        }
    }

    private static Duration timeout(JsonObject step) {
        return Duration.ofMillis(step.get("deadline_ms").getAsLong());
    }

    private static String text(JsonObject object, String key) {
        return object.has(key) ? object.get(key).getAsString() : null;
    }

    private static JsonObject read(String path) throws IOException {
        return new Gson().fromJson(Files.readString(Path.of(path)), JsonObject.class);
    }

    /** list:///HOST:PORT,HOST:PORT, for the lack of a DNS server on this stage. */
    private static final class AddressList extends NameResolverProvider {
        @Override
        public NameResolver newNameResolver(URI target, NameResolver.Args args) {
            var groups = new ArrayList<EquivalentAddressGroup>();
            for (String address : target.getPath().substring(1).split(",")) {
                String[] parts = address.split(":");
                SocketAddress socket = new InetSocketAddress(parts[0], Integer.parseInt(parts[1]));
                groups.add(new EquivalentAddressGroup(socket));
            }
            return new NameResolver() {
                @Override
                public String getServiceAuthority() {
                    return "localhost";
                }

                @Override
                public void start(Listener2 listener) {
                    listener.onResult2(ResolutionResult.newBuilder().setAddressesOrError(StatusOr.fromValue(groups)).build());
                }

                @Override
                public void shutdown() {}
            };
        }

        @Override
        public String getDefaultScheme() {
            return "list";
        }

        @Override
        protected boolean isAvailable() {
            return true;
        }

        @Override
        protected int priority() {
            return 4;
        }
    }
}
