package polylock

/*
#include <polylock.h>

extern void goPolylockReady(polylock_future, void *);
extern void goPolylockLost(polylock_lease, polylock_loss, void *);
extern void goPolylockDone(void *);

// A handle of cgo is a number; these two pass it for a pointer, which only C may do.
static polylock_status go_on_ready(polylock_future future, uintptr_t handle, polylock_error *err)
{
	return polylock_future_on_ready(future, goPolylockReady, (void *)handle, goPolylockDone, err);
}

static polylock_status go_on_lost(polylock_lease lease, uintptr_t handle, polylock_error *err)
{
	return polylock_lease_on_lost(lease, goPolylockLost, (void *)handle, goPolylockDone, err);
}
*/
import "C"

import "runtime/cgo"

// onReady calls back once when the future is over.
func onReady(future C.polylock_future, call func()) error {
	var err C.polylock_error
	return failure(uint32(C.go_on_ready(future, C.uintptr_t(cgo.NewHandle(call)), &err)), &err)
}

// onLost calls back once if the lease is lost.
func onLost(lease C.polylock_lease, call func()) error {
	var err C.polylock_error
	return failure(uint32(C.go_on_lost(lease, C.uintptr_t(cgo.NewHandle(call)), &err)), &err)
}
