#include "sign_out.h"

#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <thread>

#include <google/protobuf/util/time_util.h>
#include <grpcpp/support/error_details.h>

#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace {

constexpr int max_attempts = 3;

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (!(text << file.rdbuf())) {
        throw std::runtime_error("cannot read " + path);
    }
    return text.str();
}

/// Replaces the token whenever its file is replaced. gRPC refuses to send it without TLS.
class TokenFile : public grpc::MetadataCredentialsPlugin {
public:
    explicit TokenFile(std::string path) : path_(std::move(path)) {}

    grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                             std::multimap<grpc::string, grpc::string>* metadata) override {
        std::string token;
        if (!(std::ifstream(path_) >> token)) {
            return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "the token cannot be read");
        }
        metadata->emplace("authorization", "Bearer " + token);
        return grpc::Status::OK;
    }

private:
    std::string path_;
};

std::shared_ptr<grpc::ChannelCredentials> credentials(const SignOutClient::Reach& reach) {
    if (reach.ca.empty()) {
        if (!reach.token_file.empty()) {
            throw std::invalid_argument("a token is not sent without TLS");
        }
        return grpc::InsecureChannelCredentials();
    }
    grpc::SslCredentialsOptions files;
    files.pem_root_certs = read(reach.ca);
    if (!reach.cert.empty()) {
        files.pem_cert_chain = read(reach.cert);
        files.pem_private_key = read(reach.key);
    }
    auto tls = grpc::SslCredentials(files);
    if (reach.token_file.empty()) {
        return tls;
    }
    return grpc::CompositeChannelCredentials(
        tls, grpc::MetadataCredentialsFromPlugin(std::make_unique<TokenFile>(reach.token_file)));
}

}  // namespace

SignOutFailed::SignOutFailed(const grpc::Status& status)
    : std::runtime_error(google::rpc::Code_Name(static_cast<int>(status.error_code())) + ": " + status.error_message()), code(status.error_code()) {
    google::rpc::Status details;
    if (!grpc::ExtractErrorDetails(status, &details).ok()) {
        return;
    }
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    google::rpc::RequestInfo request;
    google::rpc::BadRequest bad;
    for (const auto& detail : details.details()) {
        if (detail.UnpackTo(&info)) {
            reason = info.reason();
            metadata = {info.metadata().begin(), info.metadata().end()};
        } else if (detail.UnpackTo(&retry)) {
            retry_after = std::chrono::nanoseconds(google::protobuf::util::TimeUtil::DurationToNanoseconds(retry.retry_delay()));
        } else if (detail.UnpackTo(&request)) {
            request_id = request.request_id();
        } else if (detail.UnpackTo(&bad)) {
            for (const auto& violation : bad.field_violations()) {
                fields.push_back(violation.field());
            }
        }
    }
}

std::string SignOutFailed::known(const std::string& key, const std::string& otherwise) const {
    const auto found = metadata.find(key);
    return found == metadata.end() ? otherwise : found->second;
}

std::string SignOutFailed::fault() const { return known("fault", ""); }

std::string SignOutFailed::outcome() const { return known("outcome", "unknown"); }

bool SignOutFailed::retryable() const {
    // Without details, only UNAVAILABLE says that another attempt may help.
    return reason.empty() ? code == grpc::StatusCode::UNAVAILABLE : known("retryable", "") == "true";
}

Advice SignOutFailed::does() const {
    if (code == grpc::StatusCode::DEADLINE_EXCEEDED || code == grpc::StatusCode::CANCELLED) {
        return Advice::raise;  // nobody waits any more; a new call is a new decision
    }
    if (retryable()) {
        return Advice::retry;
    }
    return fault() == "sidecar" || fault() == "aws" ? Advice::alert : Advice::raise;
}

SignOutClient::SignOutClient(const Reach& reach) {
    grpc::ChannelArguments arguments;
    if (reach.address.rfind("unix:", 0) == 0 || reach.address.find(',') != std::string::npos) {
        // Else the list, or in newer versions the path, is sent as the HTTP/2 authority, which is none: the server resets such calls.
        arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
    }
    if (!reach.service_config.empty()) {
        arguments.SetServiceConfigJSON(read(reach.service_config));
    }
    const auto channel = grpc::CreateCustomChannel(reach.address, credentials(reach), arguments);
    stub_ = cognito::signout::v1::SignOutService::NewStub(channel);
    health_ = grpc::health::v1::Health::NewStub(channel);
}

SignOutClient::Answer SignOutClient::sign_out(const std::string& user_pool_id, const std::string& username,
                                              std::chrono::milliseconds timeout, const std::string& traceparent) {
    thread_local std::minstd_rand random(std::random_device{}());
    const auto deadline = std::chrono::system_clock::now() + timeout;
    for (int attempt = 1;; attempt++) {
        grpc::ClientContext context;
        context.set_deadline(deadline);
        if (!traceparent.empty()) {
            context.AddMetadata("traceparent", traceparent);
        }
        try {
            return this->attempt(context, user_pool_id, username);
        } catch (const SignOutFailed& failed) {
            if (failed.does() == Advice::alert) {
                std::cerr << "ALERT: sign-outs do not work: " << failed.reason << ": " << failed.what()
                          << " (AWS request id " << failed.request_id << ")\n";
            }
            const std::chrono::nanoseconds wait = failed.retry_after.value_or(std::chrono::milliseconds(random() % (100 << attempt)));
            if (failed.does() != Advice::retry || attempt == max_attempts || std::chrono::system_clock::now() + wait >= deadline) {
                throw;
            }
            std::this_thread::sleep_for(wait);
        }
    }
}

SignOutClient::Answer SignOutClient::attempt(grpc::ClientContext& context, const std::string& user_pool_id,
                                             const std::string& username) {
    cognito::signout::v1::AdminUserGlobalSignOutRequest request;
    request.set_user_pool_id(user_pool_id);
    request.set_username(username);
    Answer answer;
    const grpc::Status status = stub_->AdminUserGlobalSignOut(&context, request, &answer);
    if (!status.ok()) {
        throw SignOutFailed(status);
    }
    return answer;
}

std::unique_ptr<grpc::ClientReader<SignOutClient::Health>> SignOutClient::watch_health(grpc::ClientContext& context,
                                                                                       const std::string& service) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    return health_->Watch(&context, request);
}
