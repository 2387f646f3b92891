// The C++ header over the same library.
#include "check.h"

#include <polylock.hpp>

#include <atomic>
#include <future>
#include <thread>
#include <type_traits>

using namespace std::chrono_literals;
using polylock::manager;
using polylock::options;

static_assert(!std::is_copy_constructible_v<polylock::lease> && !std::is_copy_assignable_v<polylock::lease>);
static_assert(std::is_nothrow_move_constructible_v<polylock::lease> && std::is_nothrow_move_assignable_v<polylock::lease>);
static_assert(std::is_nothrow_move_constructible_v<manager>);

/// The error that a call throws.
template <typename Call> static polylock::error thrown_by(Call call) {
    try {
        call();
    } catch (const polylock::error &error) {
        return error;
    }
    check_failed(__FILE__, __LINE__, "nothing was thrown");
    std::abort();
}

static void a_scope_holds_the_lock() {
    manager locks{"memory:"};
    std::uint64_t before = 0;
    for (int i = 0; i < 50; i++) {
        polylock::lease lease = locks.acquire("r", options{}.ttl(60s).wait(20s));
        CHECK(lease && lease.remaining() > 30s && lease.resource() == "r" && lease.owner_token().size() == 40);
        CHECK(lease.fencing_token() > before);
        CHECK(!locks.try_acquire("r"));
        before = lease.fencing_token();
    }
}

static void moving_hands_the_lock_on() {
    manager locks{"memory:"};
    polylock::lease one = locks.acquire("r");
    polylock::lease two = std::move(one);
    CHECK(!one.is_held() && two.is_held() && one.get() == 0);
    one = std::move(two);
    CHECK(one.is_held() && !two.is_held());
    polylock::lease &same = one;
    one = std::move(same);
    CHECK(one.is_held());
    one = locks.acquire("other"); // gives the first back
    CHECK(one.resource() == "other");
    CHECK(locks.acquire("r", options{}.wait(20s)).is_held());
    CHECK(one.release() == polylock::outcome::released && one.release() == polylock::outcome::not_held);
    CHECK(thrown_by([&] { one.extend(); }).code() == POLYLOCK_ERR_LOST);
    CHECK(thrown_by([&] { two.extend(1s); }).code() == POLYLOCK_ERR_INVALID_HANDLE);
}

static void errors_are_thrown() {
    manager locks{"memory:"};
    const auto url = thrown_by([] { manager{"nonsense"}; });
    CHECK(url.code() == POLYLOCK_ERR_INVALID_ARGUMENT && url.argument() == "url" && url.name() == std::string{"InvalidArgument"});
    const auto ttl = thrown_by([] { options{}.ttl(-1s); });
    CHECK(ttl.argument() == "ttl" && std::string{ttl.what()}.find("ttl") == 0);
    const auto name = thrown_by([&] { locks.acquire(std::string_view{"a\0b", 3}); });
    CHECK(name.argument() == "resource" && !name.is_retryable());
    const std::string cut{"a\0b", 3};
    const std::vector<std::string> names{"x", cut};
    CHECK(thrown_by([&] { locks.acquire_all(names); }).argument() == "resources");
    CHECK(thrown_by([&] { locks.try_acquire_all(names); }).code() == POLYLOCK_ERR_INVALID_ARGUMENT);
    CHECK(thrown_by([&] { locks.acquire_all_start(names); }).argument() == "resources");
    CHECK(thrown_by([&] { locks.waiting(cut); }).argument() == "resource");
    CHECK(thrown_by([&] { options{}.label(cut); }).argument() == "label");
    CHECK(thrown_by([&] { manager{names}; }).argument() == "url");
    polylock::lease lease = locks.acquire("r");
    CHECK(thrown_by([&] { lease.on_lost({}); }).argument() == "listener");
    CHECK(thrown_by([&] { polylock::set_log(polylock::log_level::warn, {}); }).argument() == "listener");
    const auto busy = thrown_by([&] { locks.acquire("r", options{}.wait(10ms)); });
    CHECK(busy.code() == POLYLOCK_ERR_TIMEOUT && busy.is_retryable() && busy.resource() == "r");
    locks.close();
    CHECK(!lease && thrown_by([&] { locks.try_acquire("r"); }).code() == POLYLOCK_ERR_CLOSED);
}

static void options_are_set_at_once_or_one_by_one() {
    manager locks{"memory:"};
    options how = options{}.label("one").auto_extend(false);
    how.ttl(60s);
    if (how.get() != 0) {
        how.label("two").wait(1s);
    }
    const polylock::lease lease = locks.acquire("r", how);
    CHECK(lease.remaining() > 30s && locks.inspect("r")->label == "two");
}

static void a_loss_is_told() {
    manager locks{"memory:"};
    std::promise<polylock::loss> told;
    polylock::lease lease = locks.acquire("r", options{}.ttl(300ms).auto_extend(false));
    lease.on_lost([&](polylock::loss reason) { told.set_value(reason); });
    CHECK(lease.wait_lost() == polylock::loss::expired && lease.loss() == polylock::loss::expired);
    CHECK(told.get_future().get() == polylock::loss::expired);
    auto kept = std::make_shared<int>(1);
    std::weak_ptr<int> watched = kept;
    polylock::lease other = locks.acquire("other");
    CHECK(!other.wait_lost(0ms));
    other.on_lost([kept = std::move(kept)](polylock::loss) {});
    other.release();
    while (!watched.expired()) {
        std::this_thread::yield(); // the finalizer destroys it
    }
    CHECK(other.wait_lost() == polylock::loss::none);
}

static void an_acquisition_can_be_left() {
    manager locks{"memory:"};
    polylock::lease held = locks.acquire("r");
    {
        polylock::pending_lease left = locks.acquire_start("r");
        CHECK(!left.wait(10ms) && !left.is_ready());
        while (locks.waiting("r") != 1) {
            std::this_thread::yield(); // it goes on elsewhere
        }
    }
    polylock::pending_lease pending = locks.acquire_start("r", options{}.label("later"));
    held.release();
    polylock::lease won = pending.get();
    CHECK(won && locks.inspect("r")->label == "later" && locks.inspect("r")->fencing_token == won.fencing_token());
    CHECK(!locks.inspect("other"));
    polylock::pending_lease cancelled = locks.acquire_start("r");
    cancelled.cancel();
    CHECK(cancelled.is_ready() && thrown_by([&] { cancelled.get(); }).code() == POLYLOCK_ERR_CLOSED);
}

static void modes_and_several() {
    manager locks{"memory:"};
    {
        polylock::lease one = locks.acquire("r", options{}.shared());
        const std::optional<polylock::lease> two = locks.try_acquire("r", options{}.shared());
        CHECK(two && one.mode() == polylock::mode::shared && !locks.try_acquire("r"));
    }
    {
        const std::optional<polylock::lease> one = locks.try_acquire("s", options{}.permit(1));
        CHECK(one && one->mode() == polylock::mode::permit && !locks.try_acquire("s", options{}.permit(1)));
        CHECK(thrown_by([&] { locks.acquire("t", options{}.permit(0)); }).argument() == "of");
    }
    polylock::queue loop;
    polylock::lease both = locks.acquire_all({"b", "a"});
    CHECK((both.resources() == std::vector<std::string>{"a", "b"}) && both.mode() == polylock::mode::exclusive);
    CHECK(!locks.try_acquire_all({"a", "c"}) && locks.try_acquire_all({"c", "d"}));
    polylock::pending_lease again = locks.acquire_all_start({"a", "b"}, options{}, loop);
    CHECK(loop.fd() >= 0 && loop.turn().empty());
    both.release();
    CHECK(again.wait() && (loop.turn() == std::vector{again.number()}) && again.get().is_held());
    polylock::pending_lease one = locks.acquire_start("one", options{}, loop);
    CHECK(loop.turn() == std::vector{one.number()} && one.get());
}

static void the_log_is_heard() {
    auto heard = std::make_shared<std::atomic<int>>(0);
    std::weak_ptr<std::atomic<int>> watched = heard;
    polylock::set_log(polylock::log_level::warn, [heard = std::move(heard)](polylock::log_level level, const char *message) {
        CHECK(level == polylock::log_level::warn && message[0]);
        heard->fetch_add(1);
    });
    manager locks{"memory:"};
    CHECK(locks.acquire("r", options{}.ttl(20ms).auto_extend(false)).wait_lost() == polylock::loss::expired);
    while (const auto still = watched.lock()) {
        if (*still > 0) {
            break;
        }
        std::this_thread::yield();
    }
    polylock::set_log(polylock::log_level::off, {});
    while (!watched.expired()) {
        std::this_thread::yield();
    }
}

int main() {
    static const check_case cases[] = {
        CASE(a_scope_holds_the_lock), CASE(moving_hands_the_lock_on),   CASE(errors_are_thrown),
        CASE(a_loss_is_told),         CASE(an_acquisition_can_be_left), CASE(modes_and_several),
        CASE(the_log_is_heard),       CASE(options_are_set_at_once_or_one_by_one),
    };
    return RUN("cplusplus", cases);
}
