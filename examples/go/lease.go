package polylock

/*
#include <polylock.h>
*/
import "C"

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Loss is why a lease was lost.
type Loss int

const (
	// NotLost says that it was not.
	NotLost Loss = C.POLYLOCK_LOSS_NONE
	// Expired says that the deadline passed before the lease could be extended, or was not to be.
	Expired Loss = C.POLYLOCK_LOSS_EXPIRED
	// Taken says that the backend holds it no more for us: deleted, broken, evicted.
	Taken Loss = C.POLYLOCK_LOSS_TAKEN
	// HeldTooLong says that MaxHold was over.
	HeldTooLong Loss = C.POLYLOCK_LOSS_MAX_HOLD
)

func (l Loss) String() string { return C.GoString(C.polylock_loss_name(C.int(l))) }

// Outcome is what became of a lease that was released.
type Outcome int

const (
	// Released says that it was ours and is free now.
	Released Outcome = C.POLYLOCK_OUTCOME_RELEASED
	// NotHeld says that it was not ours any more.
	NotHeld Outcome = C.POLYLOCK_OUTCOME_NOT_HELD
	// Unknown says that the backend did not answer: it is being released in the background.
	Unknown Outcome = C.POLYLOCK_OUTCOME_UNKNOWN
)

func (o Outcome) String() string { return C.GoString(C.polylock_outcome_name(C.int(o))) }

// Lease is a lock that is or was held. One that is forgotten without Release is released in the background when it is
// collected; do not rely on when that is.
type Lease struct {
	handle C.polylock_lease
	watch  sync.Once
	lost   chan struct{}
	// Why losses cannot be heard of.
	deaf error
}

func newLease(handle C.polylock_lease) *Lease {
	lease := &Lease{handle: handle, lost: make(chan struct{})}
	runtime.AddCleanup(lease, func(handle C.polylock_lease) { C.polylock_lease_free(handle) }, handle)
	return lease
}

// FencingToken is greater than every earlier holder's of this resource. Hand it to what you protect, and let that refuse a
// smaller one than it has seen.
func (l *Lease) FencingToken() uint64 {
	defer runtime.KeepAlive(l)
	return uint64(C.polylock_lease_fencing_token(l.handle))
}

// OwnerToken proves ownership to the backend: 40 hex digits.
func (l *Lease) OwnerToken() string {
	defer runtime.KeepAlive(l)
	var text [C.POLYLOCK_OWNER_TOKEN_SIZE]C.char
	C.polylock_lease_owner_token(l.handle, &text[0], C.size_t(len(text)))
	return C.GoString(&text[0])
}

// Resources is what is held, in the order of the names.
func (l *Lease) Resources() []string {
	defer runtime.KeepAlive(l)
	names := make([]string, C.polylock_lease_resource_count(l.handle))
	for i := range names {
		var text [1025]C.char
		C.polylock_lease_resource_at(l.handle, C.size_t(i), &text[0], C.size_t(len(text)))
		names[i] = C.GoString(&text[0])
	}
	return names
}

// IsHeld says whether the holder may act now. It asks the clock, no server; so do Remaining and Loss.
func (l *Lease) IsHeld() bool {
	defer runtime.KeepAlive(l)
	return bool(C.polylock_lease_is_held(l.handle))
}

// Remaining is how long the holder may still act.
func (l *Lease) Remaining() time.Duration {
	defer runtime.KeepAlive(l)
	return time.Duration(float64(C.polylock_lease_remaining_ms(l.handle)) * float64(time.Millisecond))
}

// Loss is why the lease was lost, or NotLost.
func (l *Lease) Loss() Loss {
	defer runtime.KeepAlive(l)
	return Loss(C.polylock_lease_loss(l.handle))
}

// Lost is closed if the lease is lost: no later than at its deadline, and never after it was released.
func (l *Lease) Lost() <-chan struct{} {
	defer runtime.KeepAlive(l)
	lost := l.lost // the callback must not keep the lease itself
	l.watch.Do(func() { l.deaf = onLost(l.handle, func() { close(lost) }) })
	return lost
}

// Context is cancelled if the lease is lost, with an error of the code Lost as its cause. Call cancel when the work is done.
func (l *Lease) Context(parent context.Context) (ctx context.Context, cancel context.CancelFunc) {
	ctx, because := context.WithCancelCause(parent)
	lost := l.Lost()
	go func() {
		select {
		case <-lost:
			because(&Error{Code: Lost, Message: "the lease was lost: " + l.Loss().String()})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { because(nil) }
}

// Extend makes the lease last for its ttl from now. The error is Lost if it is not held any more.
func (l *Lease) Extend() error {
	defer runtime.KeepAlive(l)
	var err C.polylock_error
	return failure(C.polylock_extend(l.handle, &err), &err)
}

// ExtendTTL makes the lease last for ttl from now, which is also the ttl of later renewals.
func (l *Lease) ExtendTTL(ttl time.Duration) error { return l.extendMS(milliseconds(ttl)) }

func (l *Lease) extendMS(ms float64) error {
	defer runtime.KeepAlive(l)
	var err C.polylock_error
	return failure(C.polylock_extend_ttl(l.handle, C.double(ms), &err), &err)
}

// Release frees the lock, in one round. Again is harmless. A server that does not answer is no error, but Unknown.
func (l *Lease) Release() (Outcome, error) {
	defer runtime.KeepAlive(l)
	var err C.polylock_error
	outcome := uint32(C.POLYLOCK_OUTCOME_UNKNOWN)
	if err := failure(C.polylock_release(l.handle, &outcome, &err), &err); err != nil {
		return Unknown, err
	}
	return Outcome(outcome), nil
}
