// Walks the table of cases: walk CASES TARGETS. Speaks with clients/run by lines on standard input and output.
#include <algorithm>
#include <fstream>
#include <functional>
#include <future>
#include <iostream>
#include <set>
#include <sstream>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "google/rpc/code.pb.h"
#include "sign_out.h"

namespace {

using google::protobuf::Struct;
using Seen = std::map<std::string, std::string>;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

Struct targets;
// Clients outlive a case, because a connection that survives is what some cases are about.
std::map<std::string, std::shared_ptr<SignOutClient>> clients;

Struct read(const char* path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    Struct into;
    const auto status = google::protobuf::util::JsonStringToMessage(text.str(), &into);
    if (!status.ok()) {
        throw std::runtime_error(std::string(path) + ": " + status.ToString());
    }
    return into;
}

std::string text(const Struct& object, const std::string& key) {
    const auto found = object.fields().find(key);
    return found == object.fields().end() ? "" : found->second.string_value();
}

std::string text(bool truth) { return truth ? "true" : "false"; }

milliseconds time(const Struct& object, const std::string& key, milliseconds otherwise) {
    const auto found = object.fields().find(key);
    return found == object.fields().end() ? otherwise : milliseconds(static_cast<int64_t>(found->second.number_value()));
}

void ask(const std::string& what) {
    std::cout << "ask " << what << std::endl;
    std::string reply;
    if (!std::getline(std::cin, reply) || reply != "done") {
        throw std::runtime_error(what + ": " + reply);
    }
}

std::string join(const std::set<std::string>& parts) {
    std::string all;
    for (const auto& part : parts) {
        all += (all.empty() ? "" : ",") + part;
    }
    return all;
}

/// What the table compares, as text.
Seen seen(const std::function<SignOutClient::Answer()>& call) {
    try {
        const auto answer = call();
        return {{"code", "OK"},
                {"request_id", text(!answer.aws_request_id().empty())},
                {"signed_out_at", text(answer.has_signed_out_at())}};
    } catch (const SignOutFailed& failed) {
        const auto code = failed.metadata.find("aws_error_code");
        const std::map<Advice, std::string> advice{
            {Advice::retry, "retry"}, {Advice::raise, "raise"}, {Advice::alert, "alert"}};
        return {{"code", google::rpc::Code_Name(static_cast<int>(failed.code))},
                {"reason", failed.reason},
                {"fault", failed.fault()},
                {"retryable", text(failed.retryable())},
                {"outcome", failed.outcome()},
                {"aws_error_code", code == failed.metadata.end() ? "" : code->second},
                {"retry_after", text(failed.retry_after.has_value())},
                {"request_id", text(!failed.request_id.empty())},
                {"fields", join({failed.fields.begin(), failed.fields.end()})},
                {"does", advice.at(failed.does())}};
    }
}

void check(const Struct& step, Seen actual) {
    std::string wrong;
    for (const auto& [key, value] : step.fields().at("expect").struct_value().fields()) {
        if (actual[key] != value.string_value()) {
            wrong += key + " is \"" + actual[key] + "\", not \"" + value.string_value() + "\"; ";
        }
    }
    if (!wrong.empty()) {
        throw std::runtime_error(wrong);
    }
}

std::shared_ptr<SignOutClient> dial(const Struct& step) {
    const std::string name = text(step, "over");
    auto& client = clients[name];
    if (!client || step.fields().contains("fresh")) {
        const Struct& target = targets.fields().at(name).struct_value();
        const auto& addresses = target.fields().at("addresses").list_value().values();
        std::string address = addresses[0].string_value();
        if (addresses.size() > 1) {  // in production the name of a headless service: dns:///NAME:PORT
            address = "ipv4:" + address;
            for (int i = 1; i < addresses.size(); i++) {
                address += "," + addresses[i].string_value();
            }
        }
        client = std::make_shared<SignOutClient>(SignOutClient::Reach{address, text(target, "ca"), text(target, "cert"),
                                                                      text(target, "key"), text(target, "token_file"),
                                                                      text(target, "service_config")});
    }
    return client;
}

/// One case: what a step leaves behind for a later one.
class Walk {
public:
    ~Walk() {
        for (const auto& context : {call_, watching_}) {
            if (context) {
                context->TryCancel();
            }
        }
    }

    void step(const Struct& step) {
        const std::string what = text(step, "do");
        const std::string pool = text(step, "pool"), user = text(step, "user");
        const milliseconds timeout = time(step, "deadline_ms", {});
        if (what == "ask") {
            ask(text(step, "what"));
        } else if (what == "call") {
            timed(step, [&](SignOutClient& client) {
                const auto context = within(timeout);
                if (step.fields().contains("traceparent")) {
                    context->AddMetadata("traceparent", text(step, "traceparent"));
                }
                return client.attempt(*context, pool, user);
            });
        } else if (what == "sign_out") {
            timed(step, [&](SignOutClient& client) { return client.sign_out(pool, user, timeout); });
        } else if (what == "start") {
            call_ = within(timeout);
            if (step.fields().contains("wait_for_ready")) {  // else the service config decides
                call_->set_wait_for_ready(true);
            }
            started_ = std::async(std::launch::async, [client = dial(step), context = call_, pool, user] {
                return seen([&] { return client->attempt(*context, pool, user); });
            });
        } else if (what == "cancel") {
            call_->TryCancel();
            check(step, started_.get());
        } else if (what == "finish") {
            check(step, started_.get());
        } else if (what == "watch") {
            watching_ = std::make_shared<grpc::ClientContext>();
            watch_ = dial(step)->watch_health(*watching_, text(step, "service"));
        } else if (what == "seen") {
            const std::string status = next();
            if (status != text(step, "status")) {
                throw std::runtime_error("health is " + status + ", not " + text(step, "status"));
            }
        } else if (what == "ended") {
            for (std::string status = next(); !status.empty(); status = next()) {
                if (status != text(step, "status")) {
                    throw std::runtime_error("the watch went on with " + status);
                }
            }
        } else if (what == "gather") {
            gather(step);
        } else {
            throw std::runtime_error("no such step: " + what);
        }
    }

private:
    static std::shared_ptr<grpc::ClientContext> within(milliseconds timeout) {
        auto context = std::make_shared<grpc::ClientContext>();
        context->set_deadline(std::chrono::system_clock::now() + timeout);
        return context;
    }

    static void timed(const Struct& step, const std::function<SignOutClient::Answer(SignOutClient&)>& call) {
        const auto client = dial(step);
        const auto began = Clock::now();
        const Seen actual = seen([&] { return call(*client); });
        const auto took = std::chrono::duration_cast<milliseconds>(Clock::now() - began);
        check(step, actual);
        if (took < time(step, "at_least_ms", {}) || took > time(step, "at_most_ms", took)) {
            throw std::runtime_error("it took " + std::to_string(took.count()) + " ms");
        }
    }

    static void gather(const Struct& step) {
        const auto client = dial(step);
        const auto deadline = Clock::now() + std::chrono::seconds(10);
        std::string answered_by;
        while (answered_by != text(step, "answered_by")) {
            if (Clock::now() > deadline) {
                throw std::runtime_error("answered by " + answered_by);
            }
            std::set<std::string> by;
            for (int i = 0; i < step.fields().at("times").number_value(); i++) {
                by.insert(client->attempt(*within(std::chrono::seconds(5)), text(step, "pool"), text(step, "user")).aws_request_id());
            }
            answered_by = join(by);
        }
    }

    /// The next status of the watch, or nothing if it has ended.
    std::string next() {
        SignOutClient::Health answer;
        return watch_->Read(&answer) ? SignOutClient::Health::ServingStatus_Name(answer.status()) : "";
    }

    std::shared_ptr<grpc::ClientContext> call_, watching_;
    std::future<Seen> started_;
    std::unique_ptr<grpc::ClientReader<SignOutClient::Health>> watch_;
};

}  // namespace

int main(int, char** argv) {
    const Struct table = read(argv[1]);
    targets = read(argv[2]);
    for (const auto& item : table.fields().at("cases").list_value().values()) {
        const auto& fields = item.struct_value().fields();
        const std::string name = fields.at("name").string_value();
        if (fields.contains("in")) {
            const auto& languages = fields.at("in").list_value().values();
            if (std::none_of(languages.begin(), languages.end(), [](const auto& one) { return one.string_value() == "cpp"; })) {
                continue;
            }
        }
        try {
            ask("begin " + name);
            Walk walk;
            for (const auto& step : fields.at("steps").list_value().values()) {
                Struct all = table.fields().at("defaults").struct_value();
                for (const auto& [key, value] : step.struct_value().fields()) {
                    (*all.mutable_fields())[key] = value;
                }
                walk.step(all);
            }
            std::cout << "pass " << name << std::endl;
        } catch (const std::exception& error) {
            std::cout << "fail " << name << " :: " << error.what() << std::endl;
        }
    }
}
