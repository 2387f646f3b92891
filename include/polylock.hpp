/**
 * @file polylock.hpp
 * polylock for C++17: the C API with destructors, exceptions and std::chrono. Needs nothing but polylock.h and its
 * library.
 *
 *     polylock::manager locks{"redis://localhost:6379"};
 *     {
 *         polylock::lease lease = locks.acquire("invoice:42", polylock::options{}.ttl(10s).wait(5s));
 *         charge(lease.fencing_token());
 *     } // released here, in the background; lease.release() does it at once and says what became of it
 *
 * Objects are moved, not copied; one that was moved from holds nothing. What fails throws polylock::error, whose code()
 * is the status of the C API. Every function may be called from any thread; but moving, assigning or destroying an
 * object while another thread uses that same object is a race, as in all of C++.
 */
#ifndef POLYLOCK_HPP
#define POLYLOCK_HPP

#include <polylock.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace polylock {

using milliseconds = std::chrono::duration<double, std::milli>;

/** For times to wait: as long as it takes. */
inline constexpr milliseconds forever{POLYLOCK_FOREVER};

enum class outcome { released = POLYLOCK_OUTCOME_RELEASED, not_held = POLYLOCK_OUTCOME_NOT_HELD, unknown = POLYLOCK_OUTCOME_UNKNOWN };

enum class loss { none = POLYLOCK_LOSS_NONE, expired = POLYLOCK_LOSS_EXPIRED, taken = POLYLOCK_LOSS_TAKEN, max_hold = POLYLOCK_LOSS_MAX_HOLD };

enum class mode { none = POLYLOCK_MODE_NONE, exclusive = POLYLOCK_MODE_EXCLUSIVE, shared = POLYLOCK_MODE_SHARED, permit = POLYLOCK_MODE_PERMIT };

enum class log_level { off = POLYLOCK_LOG_OFF, error = POLYLOCK_LOG_ERROR, warn = POLYLOCK_LOG_WARN, info = POLYLOCK_LOG_INFO, debug = POLYLOCK_LOG_DEBUG, trace = POLYLOCK_LOG_TRACE };

/** Why a call failed. */
class error : public std::runtime_error {
public:
    /** Takes over an error of the C API, and frees it. */
    explicit error(polylock_status code, polylock_error err)
        : std::runtime_error{err != 0 ? polylock_error_message(err) : polylock_status_name(code)},
          code_{code}, retryable_{polylock_error_is_retryable(err)} {
        if (const char *argument = polylock_error_argument(err)) {
            argument_ = argument;
        }
        if (const char *resource = polylock_error_resource(err)) {
            resource_ = resource;
        }
        polylock_error_free(err);
    }

    /** For an argument that the C API is not even asked about. */
    error(const char *argument, const char *why)
        : std::runtime_error{std::string{argument} + " " + why}, code_{POLYLOCK_ERR_INVALID_ARGUMENT}, retryable_{false},
          argument_{argument} {}

    polylock_status code() const noexcept { return code_; }
    /** "Timeout", "Lost" …: the same in every language. */
    const char *name() const noexcept { return polylock_status_name(code_); }
    /** The argument that was wrong, or "". */
    const std::string &argument() const noexcept { return argument_; }
    /** The resource that the call was about, or "". */
    const std::string &resource() const noexcept { return resource_; }
    /** Whether the same call may succeed later without any change. */
    bool is_retryable() const noexcept { return retryable_; }

private:
    polylock_status code_;
    bool retryable_;
    std::string argument_, resource_;
};

namespace detail {

/** By reference: in check(call(&err), err) the second argument may be looked at before the call. */
inline void check(polylock_status status, const polylock_error &err) {
    if (status != POLYLOCK_OK) {
        throw error{status, err};
    }
}

/** For functions that take no length: they would take what is before a NUL for all of it. */
inline const char *whole_text(const std::string &text, const char *argument) {
    if (text.find('\0') != std::string::npos) {
        throw error{argument, "must not contain NUL"};
    }
    return text.c_str();
}

/** A handle that is freed once. */
template <polylock_status (*Free)(std::uint64_t)> class handle {
public:
    handle() noexcept = default;
    explicit handle(std::uint64_t number) noexcept : number_{number} {}
    handle(handle &&other) noexcept : number_{std::exchange(other.number_, 0)} {}
    handle &operator=(handle &&other) noexcept {
        if (this != &other) {
            Free(number_);
            number_ = std::exchange(other.number_, 0);
        }
        return *this;
    }
    handle(const handle &) = delete;
    handle &operator=(const handle &) = delete;
    ~handle() { Free(number_); }

    std::uint64_t get() const noexcept { return number_; }

private:
    std::uint64_t number_ = 0;
};

/** -1 where it is for ever: a sum of durations must not become that by accident. */
inline double timeout(milliseconds time) { return time < milliseconds::zero() ? POLYLOCK_FOREVER : time.count(); }

} // namespace detail

/** How to acquire. Every setter returns the options, and throws for a value without meaning. */
class options {
public:
    options() : handle_{polylock_options_new()} {
        if (handle_.get() == 0) {
            throw error{POLYLOCK_ERR_INTERNAL, 0};
        }
    }

    /** How long the lease lasts without renewal. Default 30 s. */
    options &ttl(milliseconds ttl) & { return set(polylock_options_set_ttl_ms, ttl.count()); }
    options &&ttl(milliseconds time) && { return std::move(ttl(time)); }
    /** Waits at most this long. Default: for as long as it takes. */
    options &wait(milliseconds wait) & { return set(polylock_options_set_wait_ms, wait.count()); }
    options &&wait(milliseconds time) && { return std::move(wait(time)); }
    options &wait_forever() & { return set(polylock_options_set_wait_forever); }
    options &&wait_forever() && { return std::move(wait_forever()); }
    options &no_wait() & { return set(polylock_options_set_no_wait); }
    options &&no_wait() && { return std::move(no_wait()); }
    /** Whether the lease is renewed in the background, which is the default. */
    options &auto_extend(bool yes) & { return set(polylock_options_set_auto_extend, yes); }
    options &&auto_extend(bool yes) && { return std::move(auto_extend(yes)); }
    /** No renewal begins later than this after the grant. Default: no bound. */
    options &max_hold(milliseconds most) & { return set(polylock_options_set_max_hold_ms, most.count()); }
    options &&max_hold(milliseconds most) && { return std::move(max_hold(most)); }
    /** Whether those who ask for this are served in the order in which they came. Default: no. */
    options &fair(bool yes) & { return set(polylock_options_set_fair, yes); }
    options &&fair(bool yes) && { return std::move(fair(yes)); }
    /** What holder::label will say. */
    options &label(const std::string &label) & {
        return set(polylock_options_set_label, detail::whole_text(label, "label"));
    }
    options &&label(const std::string &text) && { return std::move(label(text)); }

    /** Together with others that hold it shared. */
    options &shared() & { return set(polylock_options_set_shared); }
    options &&shared() && { return std::move(shared()); }
    /** One of `of` permits: the resource is a semaphore. All of its users must name the same number. */
    options &permit(std::uint32_t of) & { return set(polylock_options_set_permit, of); }
    options &&permit(std::uint32_t of) && { return std::move(permit(of)); }

    polylock_options get() const noexcept { return handle_.get(); }

private:
    template <typename Setter, typename... Value> options &set(Setter setter, Value... value) {
        polylock_error err = 0;
        detail::check(setter(handle_.get(), value..., &err), err);
        return *this;
    }

    detail::handle<polylock_options_free> handle_;
};

/** A lock that is held, until it is released, lost or destroyed. */
class lease {
public:
    /** Holds nothing: every function throws or gives what the C API gives for 0. */
    lease() noexcept = default;
    /** Takes over a lease of the C API. */
    explicit lease(polylock_lease number) noexcept : handle_{number} {}

    /** Greater than every earlier holder's of this resource: hand it to what you protect. */
    std::uint64_t fencing_token() const noexcept { return polylock_lease_fencing_token(handle_.get()); }

    /** 40 hex digits that prove ownership. */
    std::string owner_token() const {
        std::array<char, POLYLOCK_OWNER_TOKEN_SIZE> text{};
        polylock_lease_owner_token(handle_.get(), text.data(), text.size());
        return text.data();
    }

    /** What is locked; the first of several. */
    std::string resource() const {
        std::array<char, 1025> text{};
        polylock_lease_resource(handle_.get(), text.data(), text.size());
        return text.data();
    }

    /** All that is locked, in the order of the names. */
    std::vector<std::string> resources() const {
        std::vector<std::string> names(polylock_lease_resource_count(handle_.get()));
        for (std::size_t i = 0; i < names.size(); i++) {
            std::array<char, 1025> text{};
            polylock_lease_resource_at(handle_.get(), i, text.data(), text.size());
            names[i] = text.data();
        }
        return names;
    }

    polylock::mode mode() const noexcept { return static_cast<polylock::mode>(polylock_lease_mode(handle_.get())); }

    /** Whether the holder may act now. Asks the clock, no server; so do the next two. */
    bool is_held() const noexcept { return polylock_lease_is_held(handle_.get()); }
    explicit operator bool() const noexcept { return is_held(); }
    milliseconds remaining() const noexcept { return milliseconds{polylock_lease_remaining_ms(handle_.get())}; }
    polylock::loss loss() const noexcept { return static_cast<polylock::loss>(polylock_lease_loss(handle_.get())); }

    /** Makes it last for its ttl from now. Blocks. */
    void extend() {
        polylock_error err = 0;
        detail::check(polylock_extend(handle_.get(), &err), err);
    }

    /** Makes it last for `ttl` from now, and so each renewal. Blocks. */
    void extend(milliseconds ttl) {
        polylock_error err = 0;
        detail::check(polylock_extend_ttl(handle_.get(), ttl.count(), &err), err);
    }

    /** Frees the lock at once. Again is harmless. Blocks. */
    polylock::outcome release() {
        polylock_error err = 0;
        polylock_outcome outcome = POLYLOCK_OUTCOME_UNKNOWN;
        detail::check(polylock_release(handle_.get(), &outcome, &err), err);
        return static_cast<polylock::outcome>(outcome);
    }

    /** Waits until it is lost (says why) or released (loss::none); nothing if `limit` passes before. Blocks. */
    std::optional<polylock::loss> wait_lost(milliseconds limit = forever) const {
        polylock_error err = 0;
        polylock_loss reason = POLYLOCK_LOSS_NONE;
        const polylock_status status = polylock_lease_wait_lost(handle_.get(), detail::timeout(limit), &reason, &err);
        if (status == POLYLOCK_ERR_TIMEOUT) {
            polylock_error_free(err);
            return std::nullopt;
        }
        detail::check(status, err);
        return static_cast<polylock::loss>(reason);
    }

    /** Calls `listener` once if it is lost, on the callback thread of the library. It must not throw. */
    void on_lost(std::function<void(polylock::loss)> listener) {
        if (!listener) {
            throw error{"listener", "must not be empty"};
        }
        auto kept = std::make_unique<std::function<void(polylock::loss)>>(std::move(listener));
        polylock_error err = 0;
        // The finalizer owns it from here on, also if the call fails.
        detail::check(polylock_lease_on_lost(handle_.get(), call, kept.release(), destroy, &err), err);
    }

    polylock_lease get() const noexcept { return handle_.get(); }

private:
    static void call(polylock_lease, polylock_loss reason, void *listener) noexcept {
        (*static_cast<std::function<void(polylock::loss)> *>(listener))(static_cast<polylock::loss>(reason));
    }
    static void destroy(void *listener) noexcept { delete static_cast<std::function<void(polylock::loss)> *>(listener); }

    detail::handle<polylock_lease_free> handle_;
};

/** Who holds a resource. */
struct holder {
    std::string owner;
    std::optional<std::string> label, host;
    std::optional<std::uint64_t> fencing_token;
    std::optional<milliseconds> expires_in;
    std::optional<std::uint32_t> pid;
};

/**
 * The operations of one event loop. Have the loop watch fd() for reading, level-triggered, and call turn() when it is
 * readable. Only one thread at a time may turn it, or wait for what was started on it.
 */
class queue {
public:
    queue() : handle_{make()} {}

    int fd() const noexcept { return polylock_queue_fd(handle_.get()); }

    /** Moves the operations on without waiting; those that are over now, oldest first, by pending_lease::number(). */
    std::vector<polylock_future> turn() {
        std::vector<polylock_future> ready;
        std::array<polylock_future, 64> some{};
        std::size_t count = some.size();
        while (count == some.size()) {
            polylock_error err = 0;
            detail::check(polylock_queue_turn(handle_.get(), some.data(), some.size(), &count, &err), err);
            ready.insert(ready.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(count));
        }
        return ready;
    }

    polylock_queue get() const noexcept { return handle_.get(); }

private:
    static polylock_queue make() {
        polylock_error err = 0;
        polylock_queue made = 0;
        detail::check(polylock_queue_new(&made, &err), err);
        return made;
    }

    detail::handle<polylock_queue_free> handle_;
};

/** An acquisition on its way. Destroying it cancels it, and gives back what it won. */
class pending_lease {
public:
    explicit pending_lease(polylock_future number) noexcept : handle_{number} {}

    bool is_ready() const noexcept { return polylock_future_is_ready(handle_.get()); }

    /** Whether it was over before `limit`. Blocks. */
    bool wait(milliseconds limit = forever) const {
        polylock_error err = 0;
        const polylock_status status = polylock_future_wait(handle_.get(), detail::timeout(limit), &err);
        if (status == POLYLOCK_ERR_TIMEOUT) {
            polylock_error_free(err);
            return false;
        }
        detail::check(status, err);
        return true;
    }

    /** Waits, and takes the lease out: once. Blocks unless it is ready. */
    lease get() {
        polylock_error err = 0;
        polylock_lease won = 0;
        detail::check(polylock_future_take_lease(handle_.get(), &won, &err), err);
        return lease{won};
    }

    void cancel() { detail::check(polylock_future_cancel(handle_.get()), 0); }

    /** What queue::turn calls it. */
    polylock_future number() const noexcept { return handle_.get(); }

private:
    detail::handle<polylock_future_free> handle_;
};

/** Makes locks on one backend. Destroying it leaves its leases as they are; close() releases them. */
class manager {
public:
    /** No connection is opened: a server that cannot be reached shows at the first use. */
    explicit manager(std::string_view url) : handle_{connect(url)} {}

    /** Redlock over several independent Redis servers. */
    explicit manager(const std::vector<std::string> &urls) : handle_{connect(urls)} {}

    /** Acquires a resource, waiting as the options say. Blocks. */
    lease acquire(std::string_view resource) { return acquire_with(resource, 0); }
    lease acquire(std::string_view resource, const options &how) { return acquire_with(resource, how.get()); }

    /** Tries once; nothing if somebody else holds it. */
    std::optional<lease> try_acquire(std::string_view resource) { return try_with(resource, 0); }
    std::optional<lease> try_acquire(std::string_view resource, const options &how) {
        return try_with(resource, how.get());
    }

    /** Acquires several resources exclusively, all or none. Blocks. */
    lease acquire_all(const std::vector<std::string> &resources, const options &how = options{}) {
        const auto names = pointers(resources, "resources");
        polylock_error err = 0;
        polylock_lease won = 0;
        detail::check(polylock_acquire_all(handle_.get(), names.data(), names.size(), how.get(), &won, &err), err);
        return lease{won};
    }

    /** Tries once; nothing if somebody else holds one of them. */
    std::optional<lease> try_acquire_all(const std::vector<std::string> &resources, const options &how = options{}) {
        const auto names = pointers(resources, "resources");
        polylock_error err = 0;
        polylock_lease won = 0;
        return tried(polylock_try_acquire_all(handle_.get(), names.data(), names.size(), how.get(), &won, &err), won,
                     err);
    }

    /** Begins to acquire, and returns at once. The engine drives it, on a thread of its own. */
    pending_lease acquire_start(std::string_view resource, const options &how = options{}) {
        return start(resource, how, 0);
    }
    /** As above, driven by the loop that turns `on`. */
    pending_lease acquire_start(std::string_view resource, const options &how, const queue &on) {
        return start(resource, how, on.get());
    }
    pending_lease acquire_all_start(const std::vector<std::string> &resources, const options &how = options{}) {
        return start_all(resources, how, 0);
    }
    pending_lease acquire_all_start(const std::vector<std::string> &resources, const options &how, const queue &on) {
        return start_all(resources, how, on.get());
    }

    /** Who holds a resource; nothing if it is free. Blocks. */
    std::optional<holder> inspect(std::string_view resource) {
        polylock_error err = 0;
        polylock_holder number = 0;
        detail::check(polylock_inspect_n(handle_.get(), resource.data(), resource.size(), &number, &err), err);
        if (number == 0) {
            return std::nullopt;
        }
        const detail::handle<polylock_holder_free> found{number};
        holder who{polylock_holder_owner(number), {}, {}, {}, {}, {}};
        if (const char *label = polylock_holder_label(number)) {
            who.label = label;
        }
        if (const char *host = polylock_holder_host(number)) {
            who.host = host;
        }
        if (const std::uint64_t token = polylock_holder_fencing_token(number)) {
            who.fencing_token = token;
        }
        if (const double left = polylock_holder_expires_in_ms(number); left >= 0) {
            who.expires_in = milliseconds{left};
        }
        if (const std::uint32_t pid = polylock_holder_pid(number)) {
            who.pid = pid;
        }
        return who;
    }

    /** How many wait for a resource through this manager. */
    std::size_t waiting(const std::string &resource) const {
        polylock_error err = 0;
        std::size_t count = 0;
        detail::check(polylock_waiting(handle_.get(), detail::whole_text(resource, "resource"), &count, &err), err);
        return count;
    }

    /** Ends who waits, releases the leases, lets go of connections. Again is harmless. Blocks. */
    void close() {
        polylock_error err = 0;
        detail::check(polylock_close(handle_.get(), &err), err);
    }

    polylock_manager get() const noexcept { return handle_.get(); }

private:
    static polylock_manager connect(std::string_view url) {
        polylock_error err = 0;
        polylock_manager made = 0;
        detail::check(polylock_connect_n(url.data(), url.size(), 0, &made, &err), err);
        return made;
    }

    static polylock_manager connect(const std::vector<std::string> &urls) {
        const auto texts = pointers(urls, "url");
        polylock_error err = 0;
        polylock_manager made = 0;
        detail::check(polylock_connect_many(texts.data(), texts.size(), 0, &made, &err), err);
        return made;
    }

    lease acquire_with(std::string_view resource, polylock_options how) {
        polylock_error err = 0;
        polylock_lease won = 0;
        detail::check(polylock_acquire_n(handle_.get(), resource.data(), resource.size(), how, &won, &err), err);
        return lease{won};
    }

    std::optional<lease> try_with(std::string_view resource, polylock_options how) {
        polylock_lease won = 0;
        polylock_error err = 0;
        return tried(polylock_try_acquire_n(handle_.get(), resource.data(), resource.size(), how, &won, &err), won, err);
    }

    static std::optional<lease> tried(polylock_status status, const polylock_lease &won, const polylock_error &err) {
        if (status == POLYLOCK_ERR_TIMEOUT) {
            polylock_error_free(err);
            return std::nullopt;
        }
        detail::check(status, err);
        return lease{won};
    }

    pending_lease start(std::string_view resource, const options &how, polylock_queue on) {
        polylock_error err = 0;
        polylock_future future = 0;
        detail::check(polylock_acquire_start_n(handle_.get(), resource.data(), resource.size(), how.get(), on, &future,
                                               &err),
                      err);
        return pending_lease{future};
    }

    pending_lease start_all(const std::vector<std::string> &resources, const options &how, polylock_queue on) {
        const auto names = pointers(resources, "resources");
        polylock_error err = 0;
        polylock_future future = 0;
        detail::check(polylock_acquire_all_start(handle_.get(), names.data(), names.size(), how.get(), on, &future,
                                                 &err),
                      err);
        return pending_lease{future};
    }

    static std::vector<const char *> pointers(const std::vector<std::string> &texts, const char *argument) {
        std::vector<const char *> found;
        for (const std::string &text : texts) {
            found.push_back(detail::whole_text(text, argument));
        }
        return found;
    }

    detail::handle<polylock_manager_free> handle_;
};

/** Releases every lease of the process and stops the library's threads, within about `limit`. */
inline void shutdown(milliseconds limit = std::chrono::seconds{2}) {
    detail::check(polylock_shutdown(detail::timeout(limit)), 0);
}

/** Calls `listener` for each message of the log up to `most`, on the callback thread. It must not throw. */
inline void set_log(log_level most, std::function<void(log_level, const char *)> listener) {
    using function = std::function<void(log_level, const char *)>;
    if (!listener && most != log_level::off) {
        throw error{"listener", "must not be empty"};
    }
    auto kept = std::make_unique<function>(std::move(listener));
    const auto call = [](polylock_log_level level, const char *message, void *given) {
        (*static_cast<function *>(given))(static_cast<log_level>(level), message);
    };
    const auto destroy = [](void *given) { delete static_cast<function *>(given); };
    polylock_error err = 0;
    // The finalizer owns it from here on, also if the call fails.
    detail::check(polylock_set_log(static_cast<int>(most), call, kept.release(), destroy, &err), err);
}

} // namespace polylock

#endif
