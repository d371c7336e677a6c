// Package qmp speaks the QEMU Machine Protocol (QEMU docs/interop/qmp-spec.rst)
// over a unix socket.
//
// A Client is one connection. QEMU serves one connection per monitor socket at
// a time: a second Dial waits, without a greeting, until the first is closed.
// All methods of a Client may be called by any number of goroutines.
//
// Commands. QEMU executes in-band commands one after another in the order in
// which they were written, and answers in that order. Out-of-band commands
// overtake them and are answered even when QEMU's main loop is stuck. QEMU
// stops reading when 8 commands wait, which would hold out-of-band ones up
// too, so a Client keeps at most 7 in flight and lets further callers wait. A
// context that ends makes the call return at once, but does not take the
// command back: QEMU may still execute it, and it keeps its place until then.
//
// Events. Every Subscription gets every event it asked for, in QEMU's order,
// and the events that QEMU wrote before a reply are in the channels before the
// call for that reply returns. Channels are bounded. A subscriber that does
// not keep up is closed with ErrSlow, or waited for if it has asked for that: it
// never loses an event without knowing. Only the Client closes the channels; a subscriber calls Close.
//
// End. When QEMU goes away, breaks the protocol or Close is called, Done is
// closed, all calls fail with Err and all subscriptions end with it. A Client
// never reconnects: whoever owns the QEMU process must know of the gap.
//
// The functions and structures in zz_generated.go are made from QEMU's own
// schema by package gen. An optional member is a pointer, or a slice or string
// whose zero value is left out. Members that the schema does not have at the
// other end are refused by QEMU with an Error and not filtered here: ask
// ReadSchema before.
package qmp

//go:generate go run ./gen -schema testdata/schema/10.0.json.gz -wanted gen/wanted.txt -out zz_generated.go
