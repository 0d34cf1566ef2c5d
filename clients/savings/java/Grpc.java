import java.time.Duration;
import signout.SignOutClient;

/** Signs users out by our client. */
final class Grpc {
    public static void main(String[] args) throws Exception {
        Probe.run(args, address -> {
            var client = new SignOutClient(new SignOutClient.Reach(address));
            return () -> client.signOut("us-east-1_EXAMPLE01", "ada", Duration.ofSeconds(10));
        });
    }
}
