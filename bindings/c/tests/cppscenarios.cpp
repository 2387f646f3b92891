// Plays tests/scenarios/ through the C++ header: `cppscenarios DIRECTORY`. The README there has the format.
#include <polylock.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <thread>
#include <unistd.h>

namespace {

using polylock::manager;
using polylock::milliseconds;
using polylock::options;
using words = std::vector<std::string>;

const char *const outcomes[] = {"released", "not_held", "unknown"};
const char *const losses[] = {"none", "expired", "taken", "max_hold"};

words split(const std::string &text, char by) {
    words found;
    std::istringstream stream{text};
    for (std::string word; std::getline(stream, word, by);) {
        found.push_back(word);
    }
    return found;
}

struct actor {
    explicit actor(const std::vector<std::string> &urls) : locks{urls.size() == 1 ? manager{urls[0]} : manager{urls}} {}

    std::string took(polylock::lease won) {
        lease = std::move(won);
        token_before = token;
        token = lease.fencing_token();
        return "ok";
    }

    manager locks;
    polylock::lease lease;
    std::uint64_t token = 0, token_before = 0;
    std::optional<polylock::pending_lease> pending;
};

class play {
public:
    play(const std::string &url, std::string prefix)
        : urls_{split(url == "memory:" ? url + prefix : url, ',')}, prefix_{std::move(prefix)} {}

    ~play() {
        for (auto &[name, actor] : actors_) {
            actor.pending.reset();
            actor.locks.close();
        }
    }

    /// Whether the backend can do what a line of needs asks for.
    bool can(const std::string &needs) const {
        if (needs.find("break") != std::string::npos && urls_[0].compare(0, 7, "memory:") == 0) {
            return false;
        }
        const actor asked{urls_};
        return needs.find("inspect") == std::string::npos ||
               (polylock_capabilities(asked.locks.get()) & POLYLOCK_CAN_INSPECT) != 0;
    }

    std::string step(const words &line, const std::string &expected) {
        if (line[0] == "sleep") {
            std::this_thread::sleep_for(milliseconds{std::stod(line[1])});
            return "";
        }
        if (line[0] == "break") {
            const std::string command = std::string{std::getenv("POLYLOCK_TEST_BREAK")} + " '" + name(line[1]) + "'";
            return std::system(command.c_str()) == 0 ? "" : "not broken";
        }
        try {
            return act(actors_.try_emplace(line[0], urls_).first->second, line, expected);
        } catch (const polylock::error &error) {
            return error.name() + (error.argument().empty() ? "" : ":" + error.argument());
        }
    }

private:
    std::string name(const std::string &word) const {
        if (word == "<empty>") {
            return "";
        }
        if (word == "<long>") {
            return std::string(1025, 'x');
        }
        if (word == "<nul>") {
            return std::string{"a\0b", 3};
        }
        return word == "<invalid-utf8>" ? "\xff\xfe" : prefix_ + ":" + word;
    }

    static std::optional<std::string> key(const words &line, const std::string &name) {
        for (const std::string &word : line) {
            if (word.compare(0, name.size() + 1, name + "=") == 0) {
                return word.substr(name.size() + 1);
            }
        }
        return std::nullopt;
    }

    static milliseconds time(const std::string &text) { return milliseconds{std::strtod(text.c_str(), nullptr)}; }

    static options how(const words &line) {
        options made;
        made = std::move(made).ttl(time(key(line, "ttl").value_or("5000")));
        const std::string wait = key(line, "wait").value_or("none");
        if (wait == "none") {
            made = std::move(made).no_wait();
        } else if (wait != "forever") {
            made = std::move(made).wait(time(wait));
        }
        if (const auto yes = key(line, "auto_extend")) {
            made = std::move(made).auto_extend(*yes == "true");
        }
        if (const auto most = key(line, "max_hold")) {
            made = std::move(made).max_hold(time(*most));
        }
        if (const auto label = key(line, "label")) {
            made = std::move(made).label(*label);
        }
        return made;
    }

    std::string act(actor &who, const words &line, const std::string &expected) {
        const std::string &action = line[1];
        if (action == "acquire" && line.back() == "&") {
            who.pending.emplace(who.locks.acquire_start(name(line[2]), how(line)));
            return "";
        }
        if (action == "acquire") {
            return who.took(who.locks.acquire(name(line[2]), how(line)));
        }
        if (action == "try") {
            auto won = who.locks.try_acquire(name(line[2]), how(line));
            return won ? who.took(std::move(*won)) : "busy";
        }
        if (action == "join") {
            return who.took(who.pending->get());
        }
        if (action == "cancel") {
            const bool late = who.pending->is_ready();
            who.pending->cancel();
            return late ? "too late" : "cancelled";
        }
        if (action == "inspect") {
            const auto holder = who.locks.inspect(name(line[2]));
            return !holder ? "free" : holder->label ? "held:" + *holder->label : "held";
        }
        if (action == "waiting") {
            std::string count;
            for (int round = 0; round < 1000; round++) {
                count = std::to_string(who.locks.waiting(name(line[2])));
                if (count == expected) {
                    break;
                }
                std::this_thread::sleep_for(milliseconds{5});
            }
            return count;
        }
        if (action == "close") {
            who.locks.close();
            return "ok";
        }
        if (action == "newer_than") {
            return who.token > actors_.at(line[2]).token ? "true" : "false";
        }
        if (action == "newer_than_before") {
            return who.token > who.token_before ? "true" : "false";
        }
        return ask(who.lease, line);
    }

    static std::string ask(polylock::lease &lease, const words &line) {
        const std::string &action = line[1];
        if (action == "extend") {
            if (const auto ttl = key(line, "ttl")) {
                lease.extend(time(*ttl));
            } else {
                lease.extend();
            }
            return "ok";
        }
        if (action == "release") {
            return outcomes[static_cast<int>(lease.release())];
        }
        if (action == "held") {
            return lease.is_held() ? "true" : "false";
        }
        if (action == "remaining") {
            return std::to_string(static_cast<long>(lease.remaining().count()));
        }
        if (action == "lost") {
            return losses[static_cast<int>(lease.wait_lost(time(*key(line, "within"))).value_or(polylock::loss::none))];
        }
        return "unknown action " + action;
    }

    std::vector<std::string> urls_;
    std::string prefix_;
    std::map<std::string, actor> actors_;
};

bool fits(const std::string &outcome, const std::string &expected) {
    const std::size_t dots = expected.find("..");
    if (dots == std::string::npos) {
        return outcome == expected;
    }
    const long number = std::strtol(outcome.c_str(), nullptr, 10);
    return std::stol(expected) <= number && number <= std::stol(expected.substr(dots + 2));
}

/// 1 if it passed, 0 if it was not played, -1 if it failed.
int play_file(const std::filesystem::path &path, const std::string &url, const std::string &prefix) {
    std::ifstream file{path};
    play playing{url, prefix};
    int number = 0, steps = 0;
    for (std::string line; std::getline(file, line);) {
        number++;
        if (line.empty() || line[0] == '#' || line.compare(0, 6, "name: ") == 0) {
            continue;
        }
        if (line.compare(0, 7, "needs: ") == 0) {
            if (!playing.can(line)) {
                return 0;
            }
            continue;
        }
        const std::size_t arrow = line.find(" => ");
        const std::string expected = arrow == std::string::npos ? "" : line.substr(arrow + 4);
        const std::string outcome = playing.step(split(line.substr(0, arrow), ' '), expected);
        if (!fits(outcome, expected)) {
            std::fprintf(stderr, "%s:%d: %s (on %s): not %s\n", path.c_str(), number, line.c_str(), url.c_str(), outcome.c_str());
            return -1;
        }
        steps++;
    }
    return steps > 0 ? 1 : -1;
}

} // namespace

int main(int argc, char **argv) {
    std::vector<std::filesystem::path> files;
    for (const auto &entry : std::filesystem::directory_iterator{argc > 1 ? argv[1] : "."}) {
        if (entry.path().extension() == ".scenario") {
            files.push_back(entry.path());
        }
    }
    if (files.size() < 20) {
        std::fprintf(stderr, "too few scenarios\n");
        return 1;
    }
    alarm(300); // many times what all of it takes: a hang fails
    const char *given = std::getenv("POLYLOCK_TEST_URLS");
    std::atomic<int> passed = 0, failed = 0;
    std::vector<std::thread> threads;
    for (const std::string &url : split(given != nullptr ? given : "memory:", ' ')) {
        threads.emplace_back([&files, &passed, &failed, url, number = threads.size()] {
            for (std::size_t i = 0; i < files.size(); i++) {
                const std::string prefix = "cpp-" + std::to_string(getpid()) + "-" + std::to_string(number) + "-" + std::to_string(i);
                const int ended = play_file(files[i], url, prefix);
                passed += ended > 0;
                failed += ended < 0;
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    polylock::shutdown();
    std::printf("cppscenarios: %d passed, %d failed\n", passed.load(), failed.load());
    return failed == 0 ? 0 : 1;
}
