/**
 * @file polylock.h
 * polylock: distributed locks on Redis, Valkey, PostgreSQL, ZooKeeper, files and memory.
 *
 *     polylock_manager locks = 0;
 *     polylock_lease lease = 0;
 *     polylock_error err = 0;
 *     if (polylock_connect("redis://localhost:6379", 0, &locks, &err) == POLYLOCK_OK &&
 *         polylock_acquire(locks, "invoice:42", 0, &lease, &err) == POLYLOCK_OK) {
 *         charge(polylock_lease_fencing_token(lease));
 *         polylock_release(lease, NULL, &err);
 *     }
 *     if (err) fprintf(stderr, "%s\n", polylock_error_message(err));
 *     polylock_error_free(err);
 *     polylock_lease_free(lease);
 *     polylock_manager_free(locks);
 *     polylock_shutdown(2000);
 *
 * CONVENTIONS
 *
 * Handles. Objects are named by 64-bit numbers, like file descriptors, and 0 is no object. A handle that is 0, was
 * freed, is of another kind or was never given out is found out and answered with POLYLOCK_ERR_INVALID_HANDLE;
 * nothing is ever followed. Each handle is freed once, by the function for its kind; freeing 0 does nothing.
 * Objects do not depend on each other's handles: a lease may outlive the handle of its manager, for example.
 *
 * Errors. Functions that can fail return a polylock_status, POLYLOCK_OK or why they failed. Outputs are written
 * only with POLYLOCK_OK. `err` is the exception: it is written only on failure, with an error object to be freed with
 * polylock_error_free; what was in it before is not freed. It may be NULL. Functions that answer with a value give
 * a harmless one (0, false, NULL) for a handle that is not valid. A NULL where something must be given is
 * POLYLOCK_ERR_INVALID_ARGUMENT. (In check(polylock_extend(lease, &err), err) a compiler may read `err` before the
 * call: use two statements.)
 *
 * Strings are UTF-8. A function takes them ended by NUL, its twin that ends in _n with a length in bytes. The library
 * keeps no pointer that it was given, but for userdata. Strings that it returns belong to the object that was asked
 * and live until that is freed.
 *
 * Times are in milliseconds, fractions allowed.
 *
 * Threads. Every function may be called from any thread at any time, also on the same object; freeing an object that
 * another thread is using takes effect for it when that call ends. "Blocks" says that a function waits for a server
 * or another holder, on the caller's own thread. Loading the library and polylock_connect start no thread. A thread that
 * is in a call must not be cancelled (pthread_cancel): that ends the program.
 *
 * Callbacks run on one thread of the library, one after the other, never inside another call. They may call anything
 * here, and should be quick: others wait behind them. userdata has to stay valid until its finalizer is called,
 * which happens once. A callback may be under way when the object it is about is freed; its finalizer says
 * when it is over. polylock_shutdown waits for callbacks. The log callback (polylock_set_log) is one of them.
 * A callback has to return: neither an exception, longjmp nor pthread_exit may leave it. One that forks may return in the
 * child, too: that ends the child.
 *
 * Options. A lock is exclusive, waits for as long as it takes and is renewed in the background unless the options say
 * otherwise: polylock_options_set_shared, polylock_options_set_permit (a semaphore), _set_ttl_ms, _set_wait_ms … They
 * hold for every way to acquire: blocking, tried once, as a future, on a queue, and of several resources, which can only be
 * had exclusively.
 *
 * fork. In the child, objects of the parent answer POLYLOCK_ERR_FORKED and stay the parent's; new ones work. Options
 * and errors may be used and freed in both.
 *
 * Leases that are still held when a process ends expire by their ttl; polylock_shutdown releases them at once.
 *
 * This file is generated from the sources in bindings/c.
 */


#ifndef POLYLOCK_H
#define POLYLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Version that this header belongs to; polylock_version() tells that of the library which is loaded. */
#define POLYLOCK_VERSION "0.1.0"
#define POLYLOCK_VERSION_MAJOR 0
#define POLYLOCK_VERSION_MINOR 1
#define POLYLOCK_VERSION_PATCH 0
/** For comparisons: major * 1,000,000 + minor * 1,000 + patch. */
#define POLYLOCK_VERSION_NUMBER 1000


/**
 * Version of the binary interface, as `polylock_abi_version()` tells it of the library that is loaded. Grows when
 * a program has to be compiled again.
 */
#define POLYLOCK_ABI_VERSION 1

/**
 * For times to wait: as long as it takes. (Every negative number means that.)
 */
#define POLYLOCK_FOREVER -1.0

/**
 * Size of a buffer for an owner token: 40 hex digits and NUL.
 */
#define POLYLOCK_OWNER_TOKEN_SIZE 41

/**
 * In polylock_capabilities: each lease has a fencing token.
 */
#define POLYLOCK_CAN_FENCE 1

/**
 * In polylock_capabilities: other processes are excluded.
 */
#define POLYLOCK_CAN_EXCLUDE_PROCESSES 2

/**
 * In polylock_capabilities: other hosts are excluded.
 */
#define POLYLOCK_CAN_EXCLUDE_HOSTS 4

/**
 * In polylock_capabilities: polylock_inspect works.
 */
#define POLYLOCK_CAN_INSPECT 8

/**
 * In polylock_capabilities: polylock_options_set_shared works.
 */
#define POLYLOCK_CAN_SHARE 16

/**
 * In polylock_capabilities: polylock_options_set_permit works.
 */
#define POLYLOCK_CAN_COUNT 32

/**
 * In polylock_capabilities: polylock_acquire_all works.
 */
#define POLYLOCK_CAN_TAKE_SEVERAL 64

/**
 * In polylock_capabilities: polylock_list works.
 */
#define POLYLOCK_CAN_LIST 128

/**
 * In polylock_capabilities: polylock_break works.
 */
#define POLYLOCK_CAN_BREAK 256

/**
 * In polylock_capabilities: polylock_options_set_fair works.
 */
#define POLYLOCK_CAN_SERVE_IN_ORDER 512

/**
 * How a call ended. The numbers are stable and the same in every language.
 */
typedef enum polylock_status {
    /**
     * Done; the outputs are written.
     */
    POLYLOCK_OK = 0,
    /**
     * The resource stayed in use for as long as the caller wanted to wait; or a wait ended before what it was for.
     */
    POLYLOCK_ERR_TIMEOUT = 1,
    /**
     * The lease is not held any more: its deadline passed, or the backend said that it is not ours.
     */
    POLYLOCK_ERR_LOST = 2,
    /**
     * The backend could not be reached, or not enough of its nodes answered.
     */
    POLYLOCK_ERR_UNAVAILABLE = 3,
    /**
     * An argument has no meaning; polylock_error_argument names it.
     */
    POLYLOCK_ERR_INVALID_ARGUMENT = 4,
    /**
     * The resource is in use as something else than this kind of lock.
     */
    POLYLOCK_ERR_CONFLICT = 5,
    /**
     * The backend cannot do this.
     */
    POLYLOCK_ERR_UNSUPPORTED = 6,
    /**
     * The server refused the user, the password or a permission.
     */
    POLYLOCK_ERR_AUTH = 7,
    /**
     * The manager or queue was closed, or the future was cancelled.
     */
    POLYLOCK_ERR_CLOSED = 8,
    /**
     * The object belongs to the process that this one was forked from.
     */
    POLYLOCK_ERR_FORKED = 9,
    /**
     * A handle that is 0, was freed, is of another kind, or was never given out.
     */
    POLYLOCK_ERR_INVALID_HANDLE = 10,
    /**
     * A bug in polylock, or a system without memory, threads or descriptors.
     */
    POLYLOCK_ERR_INTERNAL = 11,
} polylock_status;

/**
 * How much a message of the log matters.
 */
typedef enum polylock_log_level {
    /**
     * Nothing is logged.
     */
    POLYLOCK_LOG_OFF = 0,
    /**
     * Something is wrong in a way that no call can report.
     */
    POLYLOCK_LOG_ERROR = 1,
    /**
     * Something is worse than it should be; the library deals with it.
     */
    POLYLOCK_LOG_WARN = 2,
    /**
     * What an operator may want to know.
     */
    POLYLOCK_LOG_INFO = 3,
    /**
     * What helps to find an error.
     */
    POLYLOCK_LOG_DEBUG = 4,
    /**
     * Everything.
     */
    POLYLOCK_LOG_TRACE = 5,
} polylock_log_level;

/**
 * How far exclusion can be relied on.
 */
typedef enum polylock_guarantee {
    /**
     * Nothing is known (the handle is not valid).
     */
    POLYLOCK_GUARANTEE_NONE = 0,
    /**
     * Mostly; a failure of the server may give a lock to two.
     */
    POLYLOCK_GUARANTEE_BEST_EFFORT = 1,
    /**
     * While clocks run at one speed and servers keep their memory.
     */
    POLYLOCK_GUARANTEE_LEASE = 2,
    /**
     * Always, where the resource checks the fencing token.
     */
    POLYLOCK_GUARANTEE_FENCED = 3,
} polylock_guarantee;

/**
 * What became of a lease that was released.
 */
typedef enum polylock_outcome {
    /**
     * It was ours and is free now.
     */
    POLYLOCK_OUTCOME_RELEASED = 0,
    /**
     * It was not ours any more; nothing was changed.
     */
    POLYLOCK_OUTCOME_NOT_HELD = 1,
    /**
     * The backend did not answer. It is being released in the background, and ends with its ttl at the latest, or with the
     * session where one holds it.
     */
    POLYLOCK_OUTCOME_UNKNOWN = 2,
} polylock_outcome;

/**
 * How a lease holds its resource.
 */
typedef enum polylock_mode {
    /**
     * Nothing is held (the handle is not valid).
     */
    POLYLOCK_MODE_NONE = 0,
    /**
     * Alone.
     */
    POLYLOCK_MODE_EXCLUSIVE = 1,
    /**
     * Together with others that hold it shared.
     */
    POLYLOCK_MODE_SHARED = 2,
    /**
     * As one of so many at a time.
     */
    POLYLOCK_MODE_PERMIT = 3,
} polylock_mode;

/**
 * Why a lease was lost.
 */
typedef enum polylock_loss {
    /**
     * It was not.
     */
    POLYLOCK_LOSS_NONE = 0,
    /**
     * The deadline passed before it could be extended, or it was not to be extended.
     */
    POLYLOCK_LOSS_EXPIRED = 1,
    /**
     * The backend said that it is not ours any more: deleted, evicted, or taken after a failure.
     */
    POLYLOCK_LOSS_TAKEN = 2,
    /**
     * It was held for as long as max_hold allowed.
     */
    POLYLOCK_LOSS_MAX_HOLD = 3,
} polylock_loss;

/**
 * What happened to a lease, or on the way to one.
 */
typedef enum polylock_event {
    /**
     * A lease was granted.
     */
    POLYLOCK_EVENT_ACQUIRED = 1,
    /**
     * Somebody else holds it; once for each acquisition that meets this.
     */
    POLYLOCK_EVENT_CONTENDED = 2,
    /**
     * A lease was extended, by its holder or in the background.
     */
    POLYLOCK_EVENT_EXTENDED = 3,
    /**
     * An extension came to nothing; the lease may be held still.
     */
    POLYLOCK_EVENT_EXTENSION_FAILED = 4,
    /**
     * A lease was lost.
     */
    POLYLOCK_EVENT_LOST = 5,
    /**
     * A holder gave its lease up, or dropped it.
     */
    POLYLOCK_EVENT_RELEASED = 6,
} polylock_event;

/**
 * Called for each message of the log. `message` ends with the call.
 */
typedef void (*polylock_log_callback)(enum polylock_log_level level, const char *message, void *userdata);

/**
 * Called once when the library has no more use for `userdata`. May be NULL.
 */
typedef void (*polylock_finalizer)(void *userdata);

/**
 * Why a call failed. Made by every call that fails, ended by polylock_error_free.
 */
typedef uint64_t polylock_error;

/**
 * How to connect. Made by polylock_connect_options_new, ended by polylock_connect_options_free.
 */
typedef uint64_t polylock_connect_options;

/**
 * Makes locks on one backend. Made by polylock_connect, ended by polylock_manager_free.
 */
typedef uint64_t polylock_manager;

/**
 * How to acquire. Made by polylock_options_new, ended by polylock_options_free.
 */
typedef uint64_t polylock_options;

/**
 * A lock that is or was held. Made by polylock_acquire, ended by polylock_lease_free.
 */
typedef uint64_t polylock_lease;

/**
 * Who holds a resource. Made by polylock_inspect, ended by polylock_holder_free.
 */
typedef uint64_t polylock_holder;

/**
 * Called once if a lease is lost.
 */
typedef void (*polylock_lost_callback)(polylock_lease lease, enum polylock_loss reason, void *userdata);

/**
 * Called for each event: what happened to the `count` resources; the fencing token of the lease, or 0; how long
 * acquiring took or the lease has been held, or a negative number; why it was lost; why it was not extended, or NULL.
 */
typedef void (*polylock_event_callback)(enum polylock_event event,
                                        const char *const *resources,
                                        size_t count,
                                        uint64_t fencing_token,
                                        double duration_ms,
                                        enum polylock_loss reason,
                                        const char *error,
                                        void *userdata);

/**
 * Events of one manager. Made by polylock_on_event, ended by polylock_subscription_free.
 */
typedef uint64_t polylock_subscription;

/**
 * The operations of one event loop. Made by polylock_queue_new, ended by polylock_queue_free.
 */
typedef uint64_t polylock_queue;

/**
 * An operation on its way. Made by the functions that end in _start, ended by polylock_future_free.
 */
typedef uint64_t polylock_future;

/**
 * Called once when a future is ready.
 */
typedef void (*polylock_ready_callback)(polylock_future future, void *userdata);

/**
 * Claims what it protects, and writes to it, with a fencing token: 0 if that was taken, anything else if it was refused.
 */
typedef int (*polylock_write_callback)(uint64_t fencing_token, void *userdata);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library that is loaded, as in "0.1.0". The string lives for ever.
 */
const char *polylock_version(void);

/**
 * Version of the binary interface of the library that is loaded: compare it with POLYLOCK_ABI_VERSION.
 */
uint32_t polylock_abi_version(void);

/**
 * Stable name of a polylock_status: "OK", "Timeout", "Lost" …, "Internal"; "Unknown" for other numbers. The string
 * lives for ever.
 */
const char *polylock_status_name(int status);

/**
 * Stable name of a polylock_outcome: "released", "not_held" or "unknown". The string lives for ever.
 */
const char *polylock_outcome_name(int outcome);

/**
 * Stable name of a polylock_loss: "none", "expired", "taken" or "max_hold". The string lives for ever.
 */
const char *polylock_loss_name(int reason);

/**
 * Stable name of a polylock_mode: "exclusive", "shared", "permit" or "none". The string lives for ever.
 */
const char *polylock_mode_name(int mode);

/**
 * Releases every lease of this process, closes the managers that were used, and stops the library's threads; returns within
 * about `timeout_ms`. Call it before the program ends: what could not be released in time, or is held by a
 * program that ends without this call, expires on its server by its ttl. No lease is held when it returns.
 *
 * Handles stay valid and have to be freed as ever; managers that are made later work. Blocks. From a callback
 * it does not wait for callbacks.
 *
 * @param timeout_ms milliseconds; negative: as long as it takes, but 60 seconds at most.
 * @return POLYLOCK_OK, or POLYLOCK_ERR_INVALID_ARGUMENT if `timeout_ms` is not a number.
 */
enum polylock_status polylock_shutdown(double timeout_ms);

/**
 * Tells the library that this process is the child of a fork; best registered with pthread_atfork. Every call finds
 * that out by itself. What this does beyond that is to close the parent's lock files (of file: locks) and sockets to
 * PostgreSQL, whose locks would stay for as long as the child lives if the parent were killed. No effect in any other process.
 *
 * In the child, managers, leases, futures and queues of the parent answer POLYLOCK_ERR_FORKED, send nothing and
 * stay the parent's; freeing their handles is allowed. Finalizers of the parent's callbacks are not called.
 */
void polylock_fork_child(void);

/**
 * A script for Redis that claims a hash with a fencing token, and writes its value: KEYS[1] is the hash, with the fields
 * "token" and "value"; ARGV[1] the fencing token; ARGV[2] the value, or nothing to claim only. It answers 1, or 0 for a
 * holder that came too late. The string lives for ever.
 */
const char *polylock_claim_redis(void);

/**
 * SQL for a transaction of yours in PostgreSQL that claims the resource $1 (text) for the holder with the fencing token $2
 * (bigint). It is an error (SQLSTATE 22P02), after which the transaction cannot commit, if a holder with a greater token
 * has claimed it. Needs polylock_claim_postgres_table. The string lives for ever.
 */
const char *polylock_claim_postgres(void);

/**
 * SQL that makes the table of the claims in PostgreSQL, if it is missing. The string lives for ever.
 */
const char *polylock_claim_postgres_table(void);

/**
 * Has `callback` called for each message of the library's log, on its callback thread, in the order in which
 * they were written. Replaces the callback that was set before. When 10,000 messages wait for the callback, further ones
 * are dropped. Messages never hold a password.
 *
 * @param level which messages: POLYLOCK_LOG_WARN and what is worse, for example. POLYLOCK_LOG_OFF ends it.
 * @param callback may be NULL with POLYLOCK_LOG_OFF.
 * @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
 * @param finalizer called once with `userdata` when it is not used any more: after it was replaced, or if this function
 *        fails. May be NULL.
 * @return POLYLOCK_ERR_INVALID_ARGUMENT ("level", "callback"), POLYLOCK_ERR_INTERNAL if there is no thread to be had, or
 *         in the child of a fork that came during its parent's first call of this.
 */
enum polylock_status polylock_set_log(int level,
                                      polylock_log_callback callback,
                                      void *userdata,
                                      polylock_finalizer finalizer,
                                      polylock_error *err);

/**
 * The status that the failed call returned. POLYLOCK_OK for 0, POLYLOCK_ERR_INVALID_HANDLE for what is no error.
 */
enum polylock_status polylock_error_code(polylock_error error);

/**
 * A sentence that names the resource, what was done and why it failed. Never holds a password.
 * Lives until the error is freed. "" for 0 and for what is no error.
 */
const char *polylock_error_message(polylock_error error);

/**
 * The argument that was wrong, for POLYLOCK_ERR_INVALID_ARGUMENT: "url", "resource", "ttl" … NULL otherwise.
 * Lives until the error is freed.
 */
const char *polylock_error_argument(polylock_error error);

/**
 * The resource that the call was about, or NULL. Lives until the error is freed.
 */
const char *polylock_error_resource(polylock_error error);

/**
 * Whether the same call may succeed later without any change.
 */
bool polylock_error_is_retryable(polylock_error error);

/**
 * Ends an error. Its strings end with it. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_error_free(polylock_error error);

/**
 * Makes a manager of the locks at `url`. Opens no connection and starts no thread: a server that cannot be
 * reached, or a wrong password, shows at the first use.
 *
 * @param url "memory:" (a store of its own each time), "memory:NAME", "file:///var/lock/app", "redis://user:password@host:6379/0", "rediss://…",
 *        "redis+unix:///path", "redis+cluster://…", "redis+sentinel://…", "postgres://user:password@host/database",
 *        "zookeeper://host1,host2,host3/path".
 * @param options 0 for the defaults. Is only read, and may be freed afterwards.
 * @param manager out: the manager.
 * @param err out, may be NULL: why it failed.
 * @return POLYLOCK_ERR_INVALID_ARGUMENT ("url" or the option), POLYLOCK_ERR_UNSUPPORTED for a directory that locks
 *         cannot be kept in, POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_connect(const char *url,
                                      polylock_connect_options options,
                                      polylock_manager *manager,
                                      polylock_error *err);

/**
 * As polylock_connect, with the length of the URL in bytes.
 */
enum polylock_status polylock_connect_n(const char *url,
                                        size_t url_length,
                                        polylock_connect_options options,
                                        polylock_manager *manager,
                                        polylock_error *err);

/**
 * As polylock_connect, for locks that are kept on several independent Redis servers at once (Redlock).
 *
 * @param urls `count` URLs.
 */
enum polylock_status polylock_connect_many(const char *const *urls,
                                           size_t count,
                                           polylock_connect_options options,
                                           polylock_manager *manager,
                                           polylock_error *err);

/**
 * Makes options for polylock_connect, all at their defaults.
 *
 * @return 0 if there are too many handles.
 */
polylock_connect_options polylock_connect_options_new(void);

/**
 * Text that is put before each resource's name to make the Redis key. Default: nothing, so that other libraries'
 * locks on the same name exclude ours and are excluded by ours. At most 256 bytes.
 */
enum polylock_status polylock_connect_options_set_prefix(polylock_connect_options options,
                                                         const char *prefix,
                                                         polylock_error *err);

/**
 * How far clocks may run apart, as a part of the ttl: 0 to 0.5, default 0.01. Looked at by polylock_connect.
 */
enum polylock_status polylock_connect_options_set_drift_factor(polylock_connect_options options,
                                                               double factor,
                                                               polylock_error *err);

/**
 * How long one server may take to answer, in milliseconds. Default: a third of the ttl, between 50 ms and 2 s; with
 * several servers a fifth of the ttl, between 50 ms and 500 ms.
 */
enum polylock_status polylock_connect_options_set_node_timeout_ms(polylock_connect_options options,
                                                                  double timeout_ms,
                                                                  polylock_error *err);

/**
 * Ends the options. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_connect_options_free(polylock_connect_options options);

/**
 * Makes options for acquiring, all at their defaults. May be used for any number of acquisitions, which read them
 * when they begin.
 *
 * @return 0 if there are too many handles.
 */
polylock_options polylock_options_new(void);

/**
 * How long the lease lasts without renewal, in milliseconds: the time after which a dead holder frees it. From 3
 * to 2^53; default 30,000.
 *
 * @return POLYLOCK_ERR_INVALID_ARGUMENT ("ttl") if it is negative, not a number or too large; a ttl that is too
 *         small shows when acquiring.
 */
enum polylock_status polylock_options_set_ttl_ms(polylock_options options, double ttl_ms, polylock_error *err);

/**
 * Waits at most this many milliseconds for a resource that is in use.
 *
 * @return POLYLOCK_ERR_INVALID_ARGUMENT ("wait") if it is negative, not a number or over 2^53.
 */
enum polylock_status polylock_options_set_wait_ms(polylock_options options, double wait_ms, polylock_error *err);

/**
 * Waits for as long as somebody holds the resource (the default). A backend that stays out of reach for 30 s ends
 * it all the same.
 */
enum polylock_status polylock_options_set_wait_forever(polylock_options options, polylock_error *err);

/**
 * Tries once.
 */
enum polylock_status polylock_options_set_no_wait(polylock_options options, polylock_error *err);

/**
 * Whether the lease is renewed in the background until it is released (the default).
 */
enum polylock_status polylock_options_set_auto_extend(polylock_options options,
                                                      bool auto_extend,
                                                      polylock_error *err);

/**
 * No renewal begins later than this many milliseconds after the grant, so that a hung holder cannot hold for ever:
 * the lease then ends within one ttl. Default: no bound.
 *
 * @return POLYLOCK_ERR_INVALID_ARGUMENT ("max_hold") if it is negative, not a number or over 2^53; 0 shows when
 *         acquiring.
 */
enum polylock_status polylock_options_set_max_hold_ms(polylock_options options,
                                                      double max_hold_ms,
                                                      polylock_error *err);

/**
 * What polylock_holder_label will say of the lease. UTF-8, at most 256 bytes; a longer one shows when acquiring.
 */
enum polylock_status polylock_options_set_label(polylock_options options, const char *label, polylock_error *err);

/**
 * Whether those who ask for this are served in the order in which they came, also those of other processes. Whoever
 * does not ask for it may still come first. A waiter that died is passed over a second later. Default: false.
 *
 * For exclusive locks on one resource, where the backend can (POLYLOCK_CAN_SERVE_IN_ORDER); else acquiring gives
 * POLYLOCK_ERR_UNSUPPORTED.
 */
enum polylock_status polylock_options_set_fair(polylock_options options, bool fair, polylock_error *err);

/**
 * Holds the resource together with others that hold it shared; nobody holds it exclusively meanwhile.
 */
enum polylock_status polylock_options_set_shared(polylock_options options, polylock_error *err);

/**
 * Takes one of `of` permits: the resource is a semaphore, of which so many are held at a time. All of its users must
 * name the same number.
 *
 * @param of 1 to 65,535; another number shows when acquiring, as POLYLOCK_ERR_INVALID_ARGUMENT ("of").
 */
enum polylock_status polylock_options_set_permit(polylock_options options, uint32_t of, polylock_error *err);

/**
 * Holds the resource alone (the default).
 */
enum polylock_status polylock_options_set_exclusive(polylock_options options, polylock_error *err);

/**
 * Ends the options. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_options_free(polylock_options options);

/**
 * Acquires a resource, waiting as the options say. Locks are not re-entrant: a holder that asks again waits.
 * Blocks.
 *
 * @param resource 1 to 1,024 bytes of UTF-8.
 * @param options 0 for the defaults: ttl 30 s, wait for ever, renewed in the background.
 * @param lease out: the lease. Release it with polylock_release, and free it with polylock_lease_free.
 * @param err out, may be NULL: why it failed.
 * @return POLYLOCK_ERR_TIMEOUT if it stayed in use, _CONFLICT if it is in use as something else, _UNAVAILABLE if the
 *         backend was out of reach, _AUTH, _INVALID_ARGUMENT, _CLOSED, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_acquire(polylock_manager manager,
                                      const char *resource,
                                      polylock_options options,
                                      polylock_lease *lease,
                                      polylock_error *err);

/**
 * As polylock_acquire, with the length of the name in bytes.
 */
enum polylock_status polylock_acquire_n(polylock_manager manager,
                                        const char *resource,
                                        size_t resource_length,
                                        polylock_options options,
                                        polylock_lease *lease,
                                        polylock_error *err);

/**
 * As polylock_acquire, but tries once, whatever the options say of waiting: POLYLOCK_ERR_TIMEOUT if somebody else
 * holds it. Pass NULL for `err` where that is ordinary.
 */
enum polylock_status polylock_try_acquire(polylock_manager manager,
                                          const char *resource,
                                          polylock_options options,
                                          polylock_lease *lease,
                                          polylock_error *err);

/**
 * As polylock_try_acquire, with the length of the name in bytes.
 */
enum polylock_status polylock_try_acquire_n(polylock_manager manager,
                                            const char *resource,
                                            size_t resource_length,
                                            polylock_options options,
                                            polylock_lease *lease,
                                            polylock_error *err);

/**
 * As polylock_acquire, for several resources: all of them or none, exclusively. Whoever names the same ones in another
 * order does not stand in the way for ever.
 *
 * @param resources `count` names, 1 to 64, none of them twice.
 */
enum polylock_status polylock_acquire_all(polylock_manager manager,
                                          const char *const *resources,
                                          size_t count,
                                          polylock_options options,
                                          polylock_lease *lease,
                                          polylock_error *err);

/**
 * As polylock_acquire_all, but tries once: see polylock_try_acquire.
 */
enum polylock_status polylock_try_acquire_all(polylock_manager manager,
                                              const char *const *resources,
                                              size_t count,
                                              polylock_options options,
                                              polylock_lease *lease,
                                              polylock_error *err);

/**
 * Who holds a resource now. Blocks.
 *
 * @param holder out: who, to be freed with polylock_holder_free; 0 if it is free.
 * @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot tell, else as polylock_acquire.
 */
enum polylock_status polylock_inspect(polylock_manager manager,
                                      const char *resource,
                                      polylock_holder *holder,
                                      polylock_error *err);

/**
 * As polylock_inspect, with the length of the name in bytes.
 */
enum polylock_status polylock_inspect_n(polylock_manager manager,
                                        const char *resource,
                                        size_t resource_length,
                                        polylock_holder *holder,
                                        polylock_error *err);

/**
 * How many wait for a resource through this manager, in this process.
 */
enum polylock_status polylock_waiting(polylock_manager manager,
                                      const char *resource,
                                      size_t *count,
                                      polylock_error *err);

/**
 * What the manager's backend can do: POLYLOCK_CAN_… added together. 0 if the handle is not valid.
 */
uint32_t polylock_capabilities(polylock_manager manager);

/**
 * What the manager's backend promises as it is deployed.
 */
enum polylock_guarantee polylock_guarantees(polylock_manager manager);

/**
 * Closes a manager: who waits gets POLYLOCK_ERR_CLOSED, leases are released, connections let go. Returns when that
 * is done; a server that does not answer is given up when its leases must have expired. Closing twice is harmless.
 * Blocks. The handle stays valid until it is freed.
 *
 * @return POLYLOCK_ERR_INVALID_HANDLE; POLYLOCK_OK also in the child of a fork, where nothing is done.
 */
enum polylock_status polylock_close(polylock_manager manager, polylock_error *err);

/**
 * Ends the handle of a manager; does not block. Its leases stay as they are, and calls that are under way go on:
 * see polylock_close. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_manager_free(polylock_manager manager);

/**
 * Makes the lease last for its ttl from now. Blocks.
 *
 * @return POLYLOCK_ERR_LOST if it is not held any more, _UNAVAILABLE if the backend did not answer (the old deadline
 *         stands), _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_extend(polylock_lease lease, polylock_error *err);

/**
 * Makes the lease last for `ttl_ms` milliseconds from now, which is also the ttl of later renewals. Blocks.
 *
 * @param ttl_ms 3 to 2^53.
 * @return as polylock_extend, and POLYLOCK_ERR_INVALID_ARGUMENT ("ttl").
 */
enum polylock_status polylock_extend_ttl(polylock_lease lease, double ttl_ms, polylock_error *err);

/**
 * Frees the lock, in one round. Renewal stops first, and one that is on its way is waited out. Again is harmless, as it
 * is after polylock_close and polylock_shutdown: POLYLOCK_OUTCOME_NOT_HELD. Blocks. The handle stays valid until
 * polylock_lease_free.
 *
 * A server that does not answer is no error but POLYLOCK_OUTCOME_UNKNOWN: the lease is then released in the
 * background, and ends with its ttl at the latest, or with the session where one holds it.
 *
 * @param outcome out, may be NULL: what became of it.
 * @return POLYLOCK_ERR_FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_release(polylock_lease lease,
                                      enum polylock_outcome *outcome,
                                      polylock_error *err);

/**
 * Greater than every earlier holder's of this resource, and below 2^53. Hand it to what you protect, and let that
 * refuse a smaller one than it has seen. 0 if the handle is not valid.
 */
uint64_t polylock_lease_fencing_token(polylock_lease lease);

/**
 * Writes the owner token, which proves ownership to the backend: 40 hex digits and NUL.
 *
 * @param buffer room for `capacity` bytes, of which POLYLOCK_OWNER_TOKEN_SIZE are needed; less gets less, with NUL.
 * @return the length of the whole token without NUL; 0 if the handle is not valid.
 */
size_t polylock_lease_owner_token(polylock_lease lease, char *buffer, size_t capacity);

/**
 * How the lease holds its resource.
 */
enum polylock_mode polylock_lease_mode(polylock_lease lease);

/**
 * How many resources the lease holds: 1, or more by polylock_acquire_all; 0 if the handle is not valid.
 */
size_t polylock_lease_resource_count(polylock_lease lease);

/**
 * As polylock_lease_resource, for the resource at `index` (from 0, in the order of the names) of several.
 *
 * @return the length of the whole name without NUL; 0 if there is none at `index`.
 */
size_t polylock_lease_resource_at(polylock_lease lease, size_t index, char *buffer, size_t capacity);

/**
 * Writes the name of what is locked (the first of several), and NUL.
 *
 * @param buffer room for `capacity` bytes; 1,025 are always enough; less gets less, with NUL.
 * @return the length of the whole name without NUL; 0 if the handle is not valid.
 */
size_t polylock_lease_resource(polylock_lease lease, char *buffer, size_t capacity);

/**
 * Whether the holder may act now. Asks the clock, no server. False once the lease was lost or released, in the
 * child of a fork, and if the handle is not valid.
 */
bool polylock_lease_is_held(polylock_lease lease);

/**
 * How many milliseconds the holder may still act; 0 where polylock_lease_is_held is false. Asks the clock, no server.
 */
double polylock_lease_remaining_ms(polylock_lease lease);

/**
 * Until when the holder may act, in milliseconds since 1970 by the wall clock as it is set now: for people to read.
 * To decide by, see polylock_lease_remaining_ms. 0 if the handle is not valid.
 */
int64_t polylock_lease_deadline_unix_ms(polylock_lease lease);

/**
 * Why the lease was lost; POLYLOCK_LOSS_NONE if it was not. Asks the clock, no server, so that a process that was
 * paused past the deadline learns of it before any callback.
 */
enum polylock_loss polylock_lease_loss(polylock_lease lease);

/**
 * Has `callback` called once if the lease is lost: no later than at its deadline, and never after it was released.
 * Any number of callbacks may be registered. On the callback thread of the library: see the conventions.
 *
 * @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
 * @param finalizer called once with `userdata` when it is not used any more: after the callback, or when the lease
 *        was released or freed, or if this function fails. May be NULL.
 * @return POLYLOCK_ERR_INVALID_ARGUMENT if `callback` is NULL, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_lease_on_lost(polylock_lease lease,
                                            polylock_lost_callback callback,
                                            void *userdata,
                                            polylock_finalizer finalizer,
                                            polylock_error *err);

/**
 * Waits until the lease is lost or released. Blocks.
 *
 * @param timeout_ms milliseconds to wait; 0 only looks, negative (POLYLOCK_FOREVER) waits for as long as it takes.
 * @param reason out: why it was lost; POLYLOCK_LOSS_NONE if it was released.
 * @return POLYLOCK_ERR_TIMEOUT if it is still held, _INVALID_ARGUMENT, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_lease_wait_lost(polylock_lease lease,
                                              double timeout_ms,
                                              enum polylock_loss *reason,
                                              polylock_error *err);

/**
 * Ends the handle of a lease; does not block. A lease that is still held is released in the background. 0 is
 * allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_lease_free(polylock_lease lease);

/**
 * The holder's owner token; any text if another library holds it. Lives until the holder is freed; NULL if the
 * handle is not valid.
 */
const char *polylock_holder_owner(polylock_holder holder);

/**
 * What is held. Lives until the holder is freed; NULL if the handle is not valid.
 */
const char *polylock_holder_resource(polylock_holder holder);

/**
 * How it is held: "exclusive", "shared" or "permit". Lives until the holder is freed; NULL if the handle is not valid.
 */
const char *polylock_holder_mode(polylock_holder holder);

/**
 * How many managers, in all processes, have somebody waiting for the resource; -1 if the backend does not know.
 */
int64_t polylock_holder_waiting(polylock_holder holder);

/**
 * What the holder called itself (polylock_options_set_label), or NULL. Lives until the holder is freed.
 */
const char *polylock_holder_label(polylock_holder holder);

/**
 * Where the holder's process runs, or NULL if the backend does not know. Lives until the holder is freed.
 */
const char *polylock_holder_host(polylock_holder holder);

/**
 * The holder's process id, or 0 if the backend does not know.
 */
uint32_t polylock_holder_pid(polylock_holder holder);

/**
 * The holder's fencing token, or 0 if it has none.
 */
uint64_t polylock_holder_fencing_token(polylock_holder holder);

/**
 * In how many milliseconds it expires unless it is extended; negative if it does not, or that is not known.
 */
double polylock_holder_expires_in_ms(polylock_holder holder);

/**
 * When it was acquired, in milliseconds since 1970 by the holder's wall clock; 0 if the backend does not know.
 */
int64_t polylock_holder_since_unix_ms(polylock_holder holder);

/**
 * Ends a holder. Its strings end with it. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_holder_free(polylock_holder holder);

/**
 * Who holds the resources whose names match a pattern: an entry for each holder, in the order of the names. On Redis
 * it goes through all keys of the server, step by step without holding it up, and finds what this library holds; a
 * lock of another library is found by its full name alone. Blocks.
 *
 * @param pattern * stands for any text, ? for any one character, a backslash takes the next character as it is.
 * @param holders out: up to `capacity` of them, each to be freed with polylock_holder_free.
 * @param capacity for how many there is room: 1 to 100,000.
 * @param count out: how many they are. As many as `capacity` may not be all that there are.
 * @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot tell (POLYLOCK_CAN_LIST), else as polylock_inspect.
 */
enum polylock_status polylock_list(polylock_manager manager,
                                   const char *pattern,
                                   polylock_holder *holders,
                                   size_t capacity,
                                   size_t *count,
                                   polylock_error *err);

/**
 * Frees a resource though somebody holds it, if that is still the holder that was seen. The holder is told that its
 * lease is lost no later than at its next renewal; until then it may go on: break a lock when its holder is dead or
 * hung, or where the fencing token is checked. Blocks.
 *
 * @param fencing_token of the holder, as polylock_inspect or polylock_list showed it.
 * @param broken out: whether it was that one's. If not, nothing was done.
 * @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot break a lock (POLYLOCK_CAN_BREAK), _UNAVAILABLE if it did not
 *         answer (it may have been freed or not), else as polylock_inspect.
 */
enum polylock_status polylock_break(polylock_manager manager,
                                    const char *resource,
                                    uint64_t fencing_token,
                                    bool *broken,
                                    polylock_error *err);

/**
 * As polylock_break, by the owner that polylock_holder_owner gave: also of a holder without a fencing token.
 */
enum polylock_status polylock_break_owner(polylock_manager manager,
                                          const char *resource,
                                          const char *owner,
                                          bool *broken,
                                          polylock_error *err);

/**
 * What was done through a manager since it was made, in the text format of Prometheus (`text/plain; version=0.0.4`).
 * Asks no server; also works when the manager is closed.
 *
 * @param buffer out: the text, ended by NUL, if there is room for all of it; else nothing. May be NULL if `size` is 0.
 * @param size of the buffer in bytes.
 * @param length out: how long the text is in bytes, without its NUL. Not smaller than `size`: ask again with more room.
 */
enum polylock_status polylock_metrics_text(polylock_manager manager,
                                           char *buffer,
                                           size_t size,
                                           size_t *length,
                                           polylock_error *err);

/**
 * Has `callback` called, on the callback thread and in batches, for what happens to a manager's leases from now on,
 * until the subscription is freed or the manager is closed. Nobody who acquires or releases waits for it.
 *
 * @param callback called for each event; what it points at lives for the time of the call.
 * @param userdata handed to the callback.
 * @param finalizer called once with userdata, after the last call. Also if this fails. May be NULL.
 * @param subscription out: to be freed with polylock_subscription_free.
 * @return POLYLOCK_ERR_CLOSED, _FORKED, _INVALID_HANDLE, _INVALID_ARGUMENT, _INTERNAL.
 */
enum polylock_status polylock_on_event(polylock_manager manager,
                                       polylock_event_callback callback,
                                       void *userdata,
                                       polylock_finalizer finalizer,
                                       polylock_subscription *subscription,
                                       polylock_error *err);

/**
 * Ends a subscription: no callback begins any more; it does not wait for one that is under way (the finalizer says when it
 * is over). 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_subscription_free(polylock_subscription subscription);

/**
 * Starts to acquire a resource, as polylock_acquire does, and returns at once. What the engine has against the arguments,
 * and a manager of the parent process, show in the future; what is no handle or no UTF-8 shows at once.
 *
 * @param queue 0: the engine drives it, on a thread of its own. Else the queue does, when it is turned.
 * @param future out: take the lease out of it with polylock_future_take_lease, and free it with
 *        polylock_future_free.
 */
enum polylock_status polylock_acquire_start(polylock_manager manager,
                                            const char *resource,
                                            polylock_options options,
                                            polylock_queue queue,
                                            polylock_future *future,
                                            polylock_error *err);

/**
 * As polylock_acquire_start, with the length of the name in bytes.
 */
enum polylock_status polylock_acquire_start_n(polylock_manager manager,
                                              const char *resource,
                                              size_t resource_length,
                                              polylock_options options,
                                              polylock_queue queue,
                                              polylock_future *future,
                                              polylock_error *err);

/**
 * Starts to acquire several resources, as polylock_acquire_all does: see polylock_acquire_start.
 */
enum polylock_status polylock_acquire_all_start(polylock_manager manager,
                                                const char *const *resources,
                                                size_t count,
                                                polylock_options options,
                                                polylock_queue queue,
                                                polylock_future *future,
                                                polylock_error *err);

/**
 * Starts to extend a lease, as polylock_extend does. Its future is taken by polylock_future_take.
 */
enum polylock_status polylock_extend_start(polylock_lease lease,
                                           polylock_queue queue,
                                           polylock_future *future,
                                           polylock_error *err);

/**
 * Starts to extend a lease, as polylock_extend_ttl does. Its future is taken by polylock_future_take.
 */
enum polylock_status polylock_extend_ttl_start(polylock_lease lease,
                                               double ttl_ms,
                                               polylock_queue queue,
                                               polylock_future *future,
                                               polylock_error *err);

/**
 * Starts to release a lease, as polylock_release does. Its future is taken by polylock_future_take_outcome;
 * cancelling it leaves the release to the background.
 */
enum polylock_status polylock_release_start(polylock_lease lease,
                                            polylock_queue queue,
                                            polylock_future *future,
                                            polylock_error *err);

/**
 * Starts to ask who holds a resource, as polylock_inspect does. Its future is taken by polylock_future_take_holder.
 */
enum polylock_status polylock_inspect_start(polylock_manager manager,
                                            const char *resource,
                                            polylock_queue queue,
                                            polylock_future *future,
                                            polylock_error *err);

/**
 * Starts to close a manager, as polylock_close does. Its future is taken by polylock_future_take.
 */
enum polylock_status polylock_close_start(polylock_manager manager,
                                          polylock_queue queue,
                                          polylock_future *future,
                                          polylock_error *err);

/**
 * Whether the operation is over: well, badly or cancelled. False if the handle is not valid.
 */
bool polylock_future_is_ready(polylock_future future);

/**
 * Waits until the operation is over. Blocks. A future of a queue turns its queue meanwhile, on this thread, which
 * then has to be the one that turns it always; other futures that get ready are reported by the next turn.
 *
 * @param timeout_ms milliseconds; 0 only looks, negative (POLYLOCK_FOREVER) waits for as long as it takes.
 * @return POLYLOCK_ERR_TIMEOUT if it is still on its way (the future stays usable), _INVALID_ARGUMENT, _FORKED,
 *         _INVALID_HANDLE. How the operation ended is said by the taking functions.
 */
enum polylock_status polylock_future_wait(polylock_future future, double timeout_ms, polylock_error *err);

/**
 * Has `callback` called once when the operation is over; at once if it is. On the callback thread of the library: see
 * the conventions.
 *
 * @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
 * @param finalizer called once with `userdata` when it is not used any more: after the callback, or when the future
 *        was freed first, or if this function fails. May be NULL.
 * @return POLYLOCK_ERR_INVALID_ARGUMENT if `callback` is NULL or one waits for the end already, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_future_on_ready(polylock_future future,
                                              polylock_ready_callback callback,
                                              void *userdata,
                                              polylock_finalizer finalizer,
                                              polylock_error *err);

/**
 * Waits for the end of polylock_extend_start or polylock_close_start, and tells how it ended. Blocks unless the
 * future is ready.
 *
 * @return what polylock_extend or polylock_close would have; POLYLOCK_ERR_CLOSED if it was cancelled;
 *         _INVALID_ARGUMENT ("future") if it was taken already or is of another operation; _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_future_take(polylock_future future, polylock_error *err);

/**
 * As polylock_future_take, for polylock_acquire_start.
 *
 * @param lease out: the lease, which is the caller's from now on.
 */
enum polylock_status polylock_future_take_lease(polylock_future future, polylock_lease *lease, polylock_error *err);

/**
 * As polylock_future_take, for polylock_release_start.
 *
 * @param outcome out, may be NULL: what became of the lease.
 */
enum polylock_status polylock_future_take_outcome(polylock_future future,
                                                  enum polylock_outcome *outcome,
                                                  polylock_error *err);

/**
 * As polylock_future_take, for polylock_inspect_start.
 *
 * @param holder out: who, to be freed with polylock_holder_free; 0 if the resource is free.
 */
enum polylock_status polylock_future_take_holder(polylock_future future,
                                                 polylock_holder *holder,
                                                 polylock_error *err);

/**
 * Ends the operation, unless its result was taken: an acquisition leaves the line, and a lease that was or will be
 * won is given back in the background. The future is ready then, with POLYLOCK_ERR_CLOSED, and its callback is called;
 * its queue does not report it. Does not block.
 *
 * @return POLYLOCK_OK, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_future_cancel(polylock_future future);

/**
 * Ends the handle of a future, and cancels the operation: see polylock_future_cancel. A callback that has not begun
 * is not called. Does not block. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_future_free(polylock_future future);

/**
 * Makes a queue: the place of the futures that one event loop drives. Starts no thread.
 *
 * Have the loop watch polylock_queue_fd for reading, level-triggered, and call polylock_queue_turn when it is
 * readable; a future that is started on the queue then runs on the loop, and no other thread is woken for it.
 * One thread at a time may turn a queue, or wait for its futures.
 *
 * Turn it for as long as something is to be acquired on it. Those of the same manager that wait for the same
 * resource wait in one line: who is first there and is not turned keeps the others waiting for about three seconds,
 * and is then passed.
 *
 * @param queue out: the queue, to be freed with polylock_queue_free.
 * @return POLYLOCK_ERR_INTERNAL if the system gives no descriptor.
 */
enum polylock_status polylock_queue_new(polylock_queue *queue, polylock_error *err);

/**
 * The descriptor to watch, which stays the queue's: do not read, write or close it. -1 if the handle is not valid.
 */
int polylock_queue_fd(polylock_queue queue);

/**
 * Moves the queue's operations on without waiting, and says which futures have become ready, oldest first. Each
 * future is reported once, unless it is cancelled or freed before. The descriptor stays readable while there are
 * more than there was room for.
 *
 * @param ready out: room for `capacity` futures.
 * @param count out: how many there are.
 * @return POLYLOCK_ERR_INVALID_ARGUMENT, _FORKED, _INVALID_HANDLE.
 */
enum polylock_status polylock_queue_turn(polylock_queue queue,
                                         polylock_future *ready,
                                         size_t capacity,
                                         size_t *count,
                                         polylock_error *err);

/**
 * Ends the handle of a queue, cancels its futures and closes its descriptor: stop watching it first. (What is under way on
 * the engine may keep the file open for some milliseconds more.) The futures'
 * handles stay, ready with POLYLOCK_ERR_CLOSED. 0 is allowed.
 *
 * @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
 */
enum polylock_status polylock_queue_free(polylock_queue queue);

/**
 * For your own tests: shows whether what you write to refuses a zombie, that is a holder which was paused beyond its
 * lease and goes on as if nothing had happened. `write` is called for a holder, for the next one after the lease of the
 * first ran out, for the first again, which it must refuse, and for the second again: on this thread, before this returns.
 * Blocks.
 *
 * @param resource the lock that is taken for it; 1 to 1,024 bytes of UTF-8. Neither it nor the data may be in use meanwhile.
 * @param userdata handed to `write`.
 * @return POLYLOCK_ERR_INTERNAL if a write was taken or refused that should not have been, with the tokens in the message;
 *         else as polylock_acquire.
 */
enum polylock_status polylock_check_refuses_zombies(polylock_manager locks,
                                                    const char *resource,
                                                    polylock_write_callback write,
                                                    void *userdata,
                                                    polylock_error *err);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* POLYLOCK_H */
