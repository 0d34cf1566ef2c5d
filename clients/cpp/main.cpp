// Signs one user out: sign_out ADDRESS USER_POOL_ID USERNAME.
#include <iostream>

#include <google/protobuf/util/time_util.h>

#include "sign_out.h"

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: " << argv[0] << " ADDRESS USER_POOL_ID USERNAME\n";
        return 2;
    }
    try {
        SignOutClient client({argv[1]});
        const auto done = client.sign_out(argv[2], argv[3], std::chrono::seconds(5));
        std::cout << "signed out at " << google::protobuf::util::TimeUtil::ToString(done.signed_out_at())
                  << ", AWS request id " << done.aws_request_id() << '\n';
    } catch (const SignOutFailed& failed) {
        std::cerr << failed.reason << ": " << failed.what() << "; outcome: " << failed.outcome() << '\n';
        return 1;
    }
}
