package signout;

import cognito.signout.v1.SignOut.AdminUserGlobalSignOutRequest;
import cognito.signout.v1.SignOut.AdminUserGlobalSignOutResponse;
import cognito.signout.v1.SignOutServiceGrpc;
import cognito.signout.v1.SignOutServiceGrpc.SignOutServiceFutureStub;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.gson.Gson;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Iterator;
import java.util.Map;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executor;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** Signs users out of Amazon Cognito, everywhere, through the sidecar. One for each process: it holds a connection. */
public final class SignOutClient implements AutoCloseable {
    private static final int MAX_ATTEMPTS = 3;
    private static final System.Logger ALERTS = System.getLogger("alerts");

    /**
     * How to reach the sidecar.
     *
     * @param address HOST:PORT, unix:/PATH, dns:///NAME:PORT or another target of grpc-java
     * @param ca the file of the CA, or null for plain text; cert and key are files for mTLS
     * @param tokenFile read anew for every call, and sent over TLS only; or null
     * @param serviceConfig a file, or null
     */
    public record Reach(String address, String ca, String cert, String key, String tokenFile, String serviceConfig) {
        public Reach(String address) {
            this(address, null, null, null, null, null);
        }
    }

    private final ManagedChannel channel;
    private final SignOutServiceFutureStub stub;

    public SignOutClient(Reach reach) throws IOException {
        if (reach.tokenFile() != null && reach.ca() == null) {
            throw new IllegalArgumentException("a token is not sent without TLS");
        }
        var builder = Grpc.newChannelBuilder(reach.address(), credentials(reach));
        if (reach.address().startsWith("unix:")) {
            // Else the path would be the HTTP/2 authority, which it cannot be: the server resets such calls.
            builder.overrideAuthority("localhost");
        }
        if (reach.serviceConfig() != null) {
            @SuppressWarnings("unchecked")
            Map<String, ?> config = new Gson().fromJson(Files.readString(Path.of(reach.serviceConfig())), Map.class);
            builder.defaultServiceConfig(config);
        }
        channel = builder.build();
        var plain = SignOutServiceGrpc.newFutureStub(channel);
        stub = reach.tokenFile() == null ? plain : plain.withCallCredentials(new TokenFile(Path.of(reach.tokenFile())));
    }

    private static ChannelCredentials credentials(Reach reach) throws IOException {
        if (reach.ca() == null) {
            return InsecureChannelCredentials.create();
        }
        var tls = TlsChannelCredentials.newBuilder().trustManager(new File(reach.ca()));
        if (reach.cert() != null) {
            tls.keyManager(new File(reach.cert()), new File(reach.key()));
        }
        return tls.build();
    }

    /** Without trace context: there is none, or OpenTelemetry's gRPC instrumentation sends it. */
    public AdminUserGlobalSignOutResponse signOut(String userPoolId, String username, Duration timeout)
            throws SignOutFailed, InterruptedException {
        return signOut(userPoolId, username, timeout, null);
    }

    /** Tries again as the sidecar advises, within the timeout. The trace context is W3C's, or null. */
    public AdminUserGlobalSignOutResponse signOut(String userPoolId, String username, Duration timeout, String traceparent)
            throws SignOutFailed, InterruptedException {
        long deadline = System.nanoTime() + timeout.toNanos();
        for (int attempt = 1; ; attempt++) {
            try {
                return attempt(userPoolId, username, Duration.ofNanos(deadline - System.nanoTime()), traceparent);
            } catch (SignOutFailed failed) {
                if (failed.does() == SignOutFailed.Advice.ALERT) {
                    ALERTS.log(System.Logger.Level.ERROR, "sign-outs do not work, AWS request id " + failed.requestId, failed);
                }
                Duration wait = failed.retryAfter != null
                        ? failed.retryAfter
                        : Duration.ofMillis(ThreadLocalRandom.current().nextLong(100L << attempt));
                if (failed.does() != SignOutFailed.Advice.RETRY
                        || attempt == MAX_ATTEMPTS
                        || System.nanoTime() + wait.toNanos() - deadline >= 0) {
                    throw failed;
                }
                TimeUnit.NANOSECONDS.sleep(wait.toNanos());
            }
        }
    }

    /** Tries once. */
    public AdminUserGlobalSignOutResponse attempt(String userPoolId, String username, Duration timeout, String traceparent)
            throws SignOutFailed, InterruptedException {
        return await(start(userPoolId, username, timeout, traceparent, false));
    }

    /** The call as a future, whose cancelling cancels the call. */
    public ListenableFuture<AdminUserGlobalSignOutResponse> start(
            String userPoolId, String username, Duration timeout, String traceparent, boolean waitForReady) {
        var call = stub.withDeadlineAfter(timeout);
        if (waitForReady) {
            call = call.withWaitForReady();
        }
        if (traceparent != null) {
            var headers = new Metadata();
            headers.put(Metadata.Key.of("traceparent", Metadata.ASCII_STRING_MARSHALLER), traceparent);
            call = call.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
        }
        return call.adminUserGlobalSignOut(AdminUserGlobalSignOutRequest.newBuilder()
                .setUserPoolId(userPoolId)
                .setUsername(username)
                .build());
    }

    /** What became of a call. */
    public static AdminUserGlobalSignOutResponse await(ListenableFuture<AdminUserGlobalSignOutResponse> call)
            throws SignOutFailed, InterruptedException {
        try {
            return call.get();
        } catch (ExecutionException error) {
            throw new SignOutFailed(error.getCause());
        } catch (CancellationException error) {
            throw new SignOutFailed(Status.CANCELLED.withCause(error).asRuntimeException());
        }
    }

    /** SERVING, NOT_SERVING and so on, as they change; each next() waits. */
    public Iterator<HealthCheckResponse> watchHealth(String service) {
        return HealthGrpc.newBlockingStub(channel).watch(HealthCheckRequest.newBuilder().setService(service).build());
    }

    @Override
    public void close() {
        channel.shutdownNow();
    }

    private static final class TokenFile extends CallCredentials {
        private static final Metadata.Key<String> AUTHORIZATION = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
        private final Path file;

        TokenFile(Path file) {
            this.file = file;
        }

        @Override
        public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
            executor.execute(() -> {
                try {
                    var headers = new Metadata();
                    headers.put(AUTHORIZATION, "Bearer " + Files.readString(file).strip());
                    applier.apply(headers);
                } catch (IOException | RuntimeException error) {
                    applier.fail(Status.UNAUTHENTICATED.withDescription("the token cannot be read").withCause(error));
                }
            });
        }
    }

    /** For people: SignOutClient ADDRESS USER_POOL_ID USERNAME. */
    public static void main(String[] args) throws Exception {
        try (var client = new SignOutClient(new Reach(args[0]))) {
            var done = client.signOut(args[1], args[2], Duration.ofSeconds(10));
            System.out.println("signed out, AWS request id " + done.getAwsRequestId());
        }
    }
}
