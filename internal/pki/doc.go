// Package pki is the fleet's own certificate authority and what its members
// hold of it: identities, one-time enrolment tokens, the current certificate
// on disk and its renewal, TLS configurations, and the same credentials in the
// form that QEMU reads.
//
// # Identities
//
// Every member has one Identity, a kind and a name. A certificate states it as
// the URI spiffe://godwit/KIND/NAME (the form of SPIFFE-ID section 2), and
// that is what Godwit decides by. For QEMU, whose authorization knows only the
// subject, the subject of a host is O=godwit,CN=NAME, a form that no other
// kind has.
//
// # Certificates
//
// All keys are ECDSA P-256. The authority lives ten years; members' leaves are
// short-lived and renewed by a Keeper at two thirds of their life, with a new
// key each time. There is no revocation list: who must go is not renewed.
// Only the public key of a signing request is used; names come from what the
// signer knows about the requester.
//
// # Enrolment
//
// A Token proves the new member to the server, and carries the fingerprint of
// the authority, which proves the server to the new member before it trusts
// anybody. Stored is only the token's hash.
//
// Times are arguments, or time.Now in the Keeper and in TLS. A Keeper is safe
// for concurrent use; all else is immutable.
package pki
