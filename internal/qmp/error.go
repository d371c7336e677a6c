package qmp

import (
	"errors"
	"fmt"
)

// Class is QEMU's class of an error. All but Generic are for compatibility
// (qapi/error.json); texts are for humans, so most errors cannot be told apart.
type Class string

// The classes.
const (
	ClassGeneric         Class = "GenericError"
	ClassCommandNotFound Class = "CommandNotFound"
	ClassDeviceNotActive Class = "DeviceNotActive"
	ClassDeviceNotFound  Class = "DeviceNotFound"
	ClassKVMMissing      Class = "KVMMissingCap"
)

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   Class
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("QMP %s: %s", e.Command, e.Desc) }

// IsClass tells whether err is a refusal of that class.
func IsClass(err error, class Class) bool {
	refusal, ok := errors.AsType[*Error](err)
	return ok && refusal.Class == class
}

// The ends of a connection and of a subscription.
var (
	// ErrGone: QEMU closed the connection: it exited, or its monitor was removed.
	ErrGone = errors.New("QEMU closed its monitor")
	// ErrProtocol: what QEMU wrote is not QMP; the connection was closed.
	ErrProtocol = errors.New("QEMU broke the monitor protocol")

	errGreetedAgain = fmt.Errorf("%w: it greeted again", ErrProtocol)
	// ErrClosed: the Client or Subscription was closed at this end.
	ErrClosed = errors.New("monitor connection closed")
	// ErrSlow: the subscriber did not take its events and has missed some.
	ErrSlow = errors.New("event subscriber did not keep up")
)
