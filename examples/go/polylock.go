// Package polylock takes distributed locks on Redis, Valkey, PostgreSQL, ZooKeeper, files and memory. Everything that uses
// polylock excludes each other, whatever language it is written in.
//
//	locks, err := polylock.Connect("redis://localhost:6379")
//	lease, err := locks.Acquire(ctx, "invoice:42", polylock.TTL(10*time.Second))
//	defer lease.Release()
//	charge(lease.FencingToken())
//
// It is made of the C library: build it with the header and libpolylock where cgo finds them.
package polylock

/*
#cgo LDFLAGS: -lpolylock
#include <polylock.h>
#include <stdlib.h>
*/
import "C"

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"time"
	"unsafe"
)

// Manager makes locks on one backend. It may be used by any number of goroutines.
type Manager struct{ handle C.polylock_manager }

// Connect makes a manager of the locks at a URL, or at several Redis URLs (Redlock). It opens no connection: a server that
// cannot be reached shows at the first use.
func Connect(urls ...string) (*Manager, error) { return connect(0, urls) }

// connect takes a server for dead that does not answer within so many milliseconds; 0 for the default.
func connect(nodeTimeoutMS float64, urls []string) (*Manager, error) {
	options := C.polylock_connect_options_new()
	defer C.polylock_connect_options_free(options)
	var err C.polylock_error
	if nodeTimeoutMS != 0 {
		status := C.polylock_connect_options_set_node_timeout_ms(options, C.double(nodeTimeoutMS), &err)
		if status != C.POLYLOCK_OK {
			return nil, failure(status, &err)
		}
	}
	texts, free, wrong := wholeTexts(urls, "url")
	if wrong != nil {
		return nil, wrong
	}
	defer free()
	var handle C.polylock_manager
	var status uint32
	if len(urls) == 1 {
		status = C.polylock_connect(*texts, options, &handle, &err)
	} else {
		status = C.polylock_connect_many(texts, C.size_t(len(urls)), options, &handle, &err)
	}
	if status != C.POLYLOCK_OK {
		return nil, failure(status, &err)
	}
	manager := &Manager{handle}
	runtime.AddCleanup(manager, func(handle C.polylock_manager) { C.polylock_manager_free(handle) }, handle)
	return manager, nil
}

// Acquire takes a resource, waiting as the options and the context say. Once the context is done, the waiting ends with
// the context's error, and what was or will be granted is given back.
func (m *Manager) Acquire(ctx context.Context, resource string, given ...Option) (*Lease, error) {
	return m.start(ctx, given, func(options C.polylock_options, future *C.polylock_future, err *C.polylock_error) uint32 {
		text := C.CString(resource)
		defer C.free(unsafe.Pointer(text))
		return C.polylock_acquire_start_n(m.handle, text, C.size_t(len(resource)), options, 0, future, err)
	})
}

// AcquireAll takes several resources exclusively: all of them or none.
func (m *Manager) AcquireAll(ctx context.Context, resources []string, given ...Option) (*Lease, error) {
	texts, free, wrong := wholeTexts(resources, "resources")
	if wrong != nil {
		return nil, wrong
	}
	defer free()
	return m.start(ctx, given, func(options C.polylock_options, future *C.polylock_future, err *C.polylock_error) uint32 {
		return C.polylock_acquire_all_start(m.handle, texts, C.size_t(len(resources)), options, 0, future, err)
	})
}

// TryAcquire tries once; nil if somebody else holds it.
func (m *Manager) TryAcquire(resource string, given ...Option) (*Lease, error) {
	defer runtime.KeepAlive(m)
	options, failed := build(given)
	if failed != nil {
		return nil, failed
	}
	defer C.polylock_options_free(options)
	text := C.CString(resource)
	defer C.free(unsafe.Pointer(text))
	var lease C.polylock_lease
	var err C.polylock_error
	status := C.polylock_try_acquire_n(m.handle, text, C.size_t(len(resource)), options, &lease, &err)
	switch {
	case status == C.POLYLOCK_ERR_TIMEOUT:
		C.polylock_error_free(err)
		return nil, nil
	case status != C.POLYLOCK_OK:
		return nil, failure(status, &err)
	}
	return newLease(lease), nil
}

// Do acquires a resource, runs work and releases. The context that work gets is cancelled if the lease is lost. An error of
// work is returned as it is; if work did well but the lease was lost meanwhile, the error is Lost.
func (m *Manager) Do(ctx context.Context, resource string, work func(context.Context, *Lease) error, given ...Option) error {
	lease, err := m.Acquire(ctx, resource, given...)
	if err != nil {
		return err
	}
	working, cancel := lease.Context(ctx)
	defer cancel()
	defer lease.Release()
	if err := work(working, lease); err != nil {
		return err
	}
	if loss := lease.Loss(); loss != NotLost {
		return &Error{Code: Lost, Message: "the lease was lost: " + loss.String(), Resource: resource}
	}
	return nil
}

type starter func(C.polylock_options, *C.polylock_future, *C.polylock_error) uint32

// start begins an acquisition and waits for it, without a thread of the system.
func (m *Manager) start(ctx context.Context, given []Option, begin starter) (*Lease, error) {
	defer runtime.KeepAlive(m)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	options, failed := build(given)
	if failed != nil {
		return nil, failed
	}
	defer C.polylock_options_free(options)
	var future C.polylock_future
	var err C.polylock_error
	if status := begin(options, &future, &err); status != C.POLYLOCK_OK {
		return nil, failure(status, &err)
	}
	// Also cancels it, and gives back what was won and not taken.
	defer C.polylock_future_free(future)
	ready := make(chan struct{})
	if err := onReady(future, func() { close(ready) }); err != nil {
		return nil, err
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var lease C.polylock_lease
	if status := C.polylock_future_take_lease(future, &lease, &err); status != C.POLYLOCK_OK {
		return nil, failure(status, &err)
	}
	return newLease(lease), nil
}

// Holder is who holds a resource.
type Holder struct {
	// Owner is the owner token; any text if another library holds it.
	Owner string
	// Label is what the holder called itself, if it did.
	Label string
	// Host and PID say where the holder runs, if the backend knows.
	Host string
	PID  uint32
	// FencingToken is 0 if the backend knows of none.
	FencingToken uint64
	// ExpiresIn is negative if that is not known.
	ExpiresIn time.Duration
}

// Inspect says who holds a resource; nil if it is free.
func (m *Manager) Inspect(resource string) (*Holder, error) {
	defer runtime.KeepAlive(m)
	text := C.CString(resource)
	defer C.free(unsafe.Pointer(text))
	var holder C.polylock_holder
	var err C.polylock_error
	status := C.polylock_inspect_n(m.handle, text, C.size_t(len(resource)), &holder, &err)
	if status != C.POLYLOCK_OK || holder == 0 {
		return nil, failure(status, &err)
	}
	defer C.polylock_holder_free(holder)
	return &Holder{
		Owner:        C.GoString(C.polylock_holder_owner(holder)),
		Label:        C.GoString(C.polylock_holder_label(holder)),
		Host:         C.GoString(C.polylock_holder_host(holder)),
		PID:          uint32(C.polylock_holder_pid(holder)),
		FencingToken: uint64(C.polylock_holder_fencing_token(holder)),
		ExpiresIn:    time.Duration(float64(C.polylock_holder_expires_in_ms(holder)) * float64(time.Millisecond)),
	}, nil
}

// Waiting counts who waits for a resource through this manager.
func (m *Manager) Waiting(resource string) (int, error) {
	defer runtime.KeepAlive(m)
	text, wrong := wholeText(resource, "resource")
	if wrong != nil {
		return 0, wrong
	}
	defer C.free(unsafe.Pointer(text))
	var count C.size_t
	var err C.polylock_error
	status := C.polylock_waiting(m.handle, text, &count, &err)
	return int(count), failure(status, &err)
}

const canInspect = uint32(C.POLYLOCK_CAN_INSPECT)

// can says whether the backend has what is asked for.
func (m *Manager) can(what uint32) bool {
	defer runtime.KeepAlive(m)
	return uint32(C.polylock_capabilities(m.handle))&what != 0
}

// Close ends who waits, with Closed, releases the leases and lets go of connections. Again is harmless.
func (m *Manager) Close() error {
	defer runtime.KeepAlive(m)
	var err C.polylock_error
	return failure(C.polylock_close(m.handle, &err), &err)
}

// Shutdown releases every lease of the process and stops the library's threads, within about the limit. Call it before the
// program ends: what is still held then expires by its ttl.
func Shutdown(limit time.Duration) error {
	if status := C.polylock_shutdown(C.double(milliseconds(limit))); status != C.POLYLOCK_OK {
		return Code(status)
	}
	return nil
}

// Version is that of the library that is loaded.
func Version() string { return C.GoString(C.polylock_version()) }

// IsBusy says whether an acquisition failed only because somebody else held the resource for too long.
func IsBusy(err error) bool { return errors.Is(err, Timeout) }

// wholeText makes a string for a function that takes no length, to be freed. Such a function would take what is before a
// NUL for all of it.
func wholeText(text, argument string) (*C.char, error) {
	if strings.IndexByte(text, 0) >= 0 {
		return nil, &Error{Code: InvalidArgument, Message: argument + " must not contain NUL", Argument: argument}
	}
	return C.CString(text), nil
}

// wholeTexts makes an array of them, and what frees it.
func wholeTexts(texts []string, argument string) (**C.char, func(), error) {
	size := C.size_t(max(1, len(texts))) * C.size_t(unsafe.Sizeof((*C.char)(nil)))
	array := (**C.char)(C.malloc(size))
	pointers := unsafe.Slice(array, max(1, len(texts)))
	pointers[0] = nil
	made := 0
	free := func() {
		for _, text := range pointers[:made] {
			C.free(unsafe.Pointer(text))
		}
		C.free(unsafe.Pointer(array))
	}
	for _, text := range texts {
		pointer, err := wholeText(text, argument)
		if err != nil {
			free()
			return nil, nil, err
		}
		pointers[made] = pointer
		made++
	}
	return array, free, nil
}
