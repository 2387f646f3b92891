package polylock

/*
#include <polylock.h>
*/
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

//export goPolylockReady
func goPolylockReady(future C.polylock_future, userdata unsafe.Pointer) {
	cgo.Handle(userdata).Value().(func())()
}

//export goPolylockLost
func goPolylockLost(lease C.polylock_lease, reason C.polylock_loss, userdata unsafe.Pointer) {
	cgo.Handle(userdata).Value().(func())()
}

// The library has no more use for the callback.
//
//export goPolylockDone
func goPolylockDone(userdata unsafe.Pointer) {
	cgo.Handle(userdata).Delete()
}
