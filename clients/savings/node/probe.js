// probe.js grpc|sdk ADDRESS STARTED CALLS: signs a user out, by our client or by the AWS SDK, and prints what it took.

const [way, address, started, calls] = [process.argv[2], process.argv[3], Number(process.argv[4]), Number(process.argv[5])];
let signOut;
if (way === "grpc") {
  const { SignOutClient } = await import("./sign_out.js");
  const client = new SignOutClient(address);
  signOut = () => client.signOut("us-east-1_EXAMPLE01", "ada");
} else {
  const { CognitoIdentityProviderClient, AdminUserGlobalSignOutCommand } = await import("@aws-sdk/client-cognito-identity-provider");
  const client = new CognitoIdentityProviderClient({ endpoint: address, region: "us-east-1" });
  signOut = () => client.send(new AdminUserGlobalSignOutCommand({ UserPoolId: "us-east-1_EXAMPLE01", Username: "ada" }));
}

await signOut();
const first = Date.now() / 1000 - started;
for (let i = 0; i < 100; i++) await signOut();
const before = process.cpuUsage();
const took = [];
for (let i = 0; i < calls; i++) {
  const began = performance.now();
  await signOut();
  took.push(performance.now() - began);
}
const { user, system } = process.cpuUsage(before);
took.sort((a, b) => a - b);
console.log(JSON.stringify({
  first_ms: first * 1e3,
  cpu_us: (user + system) / calls,
  p50_us: took[Math.floor(calls / 2)] * 1e3,
  rss_mb: process.resourceUsage().maxRSS / 1024,
}));
process.exit();
