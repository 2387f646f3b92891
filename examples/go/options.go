package polylock

/*
#include <polylock.h>
#include <stdlib.h>
*/
import "C"

import (
	"time"
	"unsafe"
)

// Option says how to acquire. Without any: exclusively, for 30 s at a time, renewed in the background, waiting for as
// long as it takes.
type Option func(C.polylock_options) error

// TTL is how long the lease lasts without renewal: the time after which a dead holder frees it.
func TTL(ttl time.Duration) Option { return ttlMS(milliseconds(ttl)) }

func ttlMS(ms float64) Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_ttl_ms(options, C.double(ms), &err), &err)
	}
}

// Wait bounds the waiting for a resource that is in use; the error is then Timeout. So does the context's deadline, with
// the context's error.
func Wait(wait time.Duration) Option { return waitMS(milliseconds(wait)) }

func waitMS(ms float64) Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_wait_ms(options, C.double(ms), &err), &err)
	}
}

// NoAutoExtend leaves the renewal to Extend.
func NoAutoExtend() Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_auto_extend(options, false, &err), &err)
	}
}

// MaxHold bounds the holding: no renewal begins later than this after the grant.
func MaxHold(most time.Duration) Option { return maxHoldMS(milliseconds(most)) }

func maxHoldMS(ms float64) Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_max_hold_ms(options, C.double(ms), &err), &err)
	}
}

// Label is what Holder.Label will say of the lease.
func Label(label string) Option {
	return func(options C.polylock_options) error {
		text, wrong := wholeText(label, "label")
		if wrong != nil {
			return wrong
		}
		defer C.free(unsafe.Pointer(text))
		var err C.polylock_error
		return failure(C.polylock_options_set_label(options, text, &err), &err)
	}
}

// Shared holds the resource together with others that hold it shared.
func Shared() Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_shared(options, &err), &err)
	}
}

// Permit takes one of so many permits: the resource is a semaphore.
func Permit(of uint32) Option {
	return func(options C.polylock_options) error {
		var err C.polylock_error
		return failure(C.polylock_options_set_permit(options, C.uint32_t(of), &err), &err)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// build makes the options of one acquisition, to be freed; 0 where there are none.
func build(given []Option) (C.polylock_options, error) {
	if len(given) == 0 {
		return 0, nil
	}
	options := C.polylock_options_new()
	for _, option := range given {
		if err := option(options); err != nil {
			C.polylock_options_free(options)
			return 0, err
		}
	}
	return options, nil
}
