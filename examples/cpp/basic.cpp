// Takes a lock, uses it, gives it back: `basic [URL]`.
#include <iostream>
#include <polylock.hpp>

int main(int argc, char **argv) {
    using namespace std::chrono_literals;
    try {
        polylock::manager locks{argc > 1 ? argv[1] : "redis://localhost:6379"};
        polylock::lease lease = locks.acquire("invoice:42", polylock::options{}.ttl(10s).wait(5s));
        std::cout << "charged, fencing token " << lease.fencing_token() << '\n';
        lease.release();
    } catch (const polylock::error &error) {
        std::cerr << error.name() << ": " << error.what() << '\n';
        return 1;
    }
    polylock::shutdown();
}
