package polylock

/*
#include <polylock.h>
*/
import "C"

// Code says why a call failed. The numbers and names are the same in every language. A Code is an error itself, so that
// errors.Is(err, polylock.Timeout) asks for one.
type Code int

const (
	Timeout         Code = C.POLYLOCK_ERR_TIMEOUT
	Lost            Code = C.POLYLOCK_ERR_LOST
	Unavailable     Code = C.POLYLOCK_ERR_UNAVAILABLE
	InvalidArgument Code = C.POLYLOCK_ERR_INVALID_ARGUMENT
	Conflict        Code = C.POLYLOCK_ERR_CONFLICT
	Unsupported     Code = C.POLYLOCK_ERR_UNSUPPORTED
	Auth            Code = C.POLYLOCK_ERR_AUTH
	Closed          Code = C.POLYLOCK_ERR_CLOSED
	Forked          Code = C.POLYLOCK_ERR_FORKED
	InvalidHandle   Code = C.POLYLOCK_ERR_INVALID_HANDLE
	Internal        Code = C.POLYLOCK_ERR_INTERNAL
)

// Error is the stable name: "Timeout", "Lost", and so on.
func (c Code) Error() string { return C.GoString(C.polylock_status_name(C.int(c))) }

// Error is why a call failed.
type Error struct {
	Code Code
	// Message names the resource, what was done and why it failed. It never holds a password.
	Message string
	// Argument is the one that was wrong, for InvalidArgument.
	Argument string
	// Resource is what the call was about, if it was about one.
	Resource string
	// Retryable says whether the same call may succeed later without any change.
	Retryable bool
}

func (e *Error) Error() string { return "polylock: " + e.Message }

// Unwrap gives the code, for errors.Is.
func (e *Error) Unwrap() error { return e.Code }

// failure makes an error of a status and the error object that came with it, which it frees. By reference: Go may read an
// argument before the call beside it.
func failure(status uint32, given *C.polylock_error) error {
	if status == C.POLYLOCK_OK {
		return nil
	}
	object := *given
	defer C.polylock_error_free(object)
	err := &Error{Code: Code(status), Message: C.GoString(C.polylock_error_message(object))}
	if err.Message == "" {
		err.Message = err.Code.Error()
	}
	err.Argument = C.GoString(C.polylock_error_argument(object))
	err.Resource = C.GoString(C.polylock_error_resource(object))
	err.Retryable = bool(C.polylock_error_is_retryable(object))
	return err
}
