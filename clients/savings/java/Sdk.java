import java.net.URI;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cognitoidentityprovider.CognitoIdentityProviderClient;

/** Signs users out by the AWS SDK. */
final class Sdk {
    public static void main(String[] args) throws Exception {
        Probe.run(args, address -> {
            var client = CognitoIdentityProviderClient.builder()
                    .endpointOverride(URI.create(address))
                    .region(Region.US_EAST_1)
                    .build();
            return () -> client.adminUserGlobalSignOut(request -> request.userPoolId("us-east-1_EXAMPLE01").username("ada"));
        });
    }
}
