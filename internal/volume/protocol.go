package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The numbers of the protocol: NBD's doc/proto.md, "Values". All integers on
// the wire are big-endian.
const (
	magicHello      = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9 // of an option
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Flags of the handshake, from the server and from the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Flags of the transmission: what an export can do.
const (
	canHaveFlags   = 1 << 0
	canFlush       = 1 << 2
	canFUA         = 1 << 3
	canTrim        = 1 << 5
	canWriteZeroes = 1 << 6
	canDF          = 1 << 7
	canMultiConn   = 1 << 8
	canCache       = 1 << 10
	canFastZero    = 1 << 11
)

type optionKind uint32

const (
	optExportName      optionKind = 1
	optAbort           optionKind = 2
	optList            optionKind = 3
	optStartTLS        optionKind = 5
	optInfo            optionKind = 6
	optGo              optionKind = 7
	optStructured      optionKind = 8
	optListMetaContext optionKind = 9
	optSetMetaContext  optionKind = 10
)

type replyKind uint32

const (
	repAck         replyKind = 1
	repServer      replyKind = 2
	repInfo        replyKind = 3
	repMetaContext replyKind = 4

	repErrUnsupported replyKind = 1<<31 + 1
	repErrPolicy      replyKind = 1<<31 + 2
	repErrInvalid     replyKind = 1<<31 + 3
	repErrTLSRequired replyKind = 1<<31 + 5
	repErrUnknown     replyKind = 1<<31 + 6
	repErrTooBig      replyKind = 1<<31 + 9
)

// What can be asked of an export.
const (
	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3
)

type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisconnect  command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

// Flags of commands.
const (
	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagDF       = 1 << 2
	flagReqOne   = 1 << 3
	flagFastZero = 1 << 4
)

// Chunks of structured replies.
const (
	chunkDone        = 1 << 0 // flag
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
)

// The metadata context that there is, and the states of its extents.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = 1
	stateHole           = 1 << 0
	stateZero           = 1 << 1
)

// Limits.
const (
	maxPayload     = 32 << 20 // of a READ or WRITE
	maxString      = 4096     // the protocol's
	maxOptionData  = 64 << 10
	blockPreferred = 4096
)

const (
	optionHeaderSize  = 16
	requestHeaderSize = 28
)

// errProtocol ends a connection whose other end does not keep to the protocol
// in a way that leaves no common ground.
var errProtocol = errors.New("the client does not speak NBD as it should")

// optionHeader begins an option.
type optionHeader struct {
	kind   optionKind
	length uint32
}

func decodeOptionHeader(b []byte) (h optionHeader, err error) {
	if len(b) != optionHeaderSize || binary.BigEndian.Uint64(b) != magicOption {
		return h, fmt.Errorf("%w: an option begins wrongly", errProtocol)
	}
	return optionHeader{optionKind(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:])}, nil
}

// fields takes an option's data apart. After the first part that is not there,
// bad is set and all that follows is zero.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) bytes(n uint32) []byte {
	if f.bad || uint64(n) > uint64(len(f.rest)) {
		f.bad = true
		return nil
	}
	taken := f.rest[:n]
	f.rest = f.rest[n:]
	return taken
}

func (f *fields) uint16() uint16 {
	if b := f.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// string takes a string with its length before it.
func (f *fields) string() string {
	b := f.bytes(f.uint32())
	if !isString(b) {
		f.bad = true
		return ""
	}
	return string(b)
}

// isString tells whether bytes are what the protocol calls a string.
func isString(b []byte) bool { return len(b) <= maxString && utf8.Valid(b) }

func (f *fields) end() error {
	if f.bad || len(f.rest) > 0 {
		return errors.New("the option's data are not of its form")
	}
	return nil
}

// infoQuery is the data of INFO and GO.
type infoQuery struct {
	name  string
	wants []uint16
}

func decodeInfoQuery(data []byte) (q infoQuery, err error) {
	f := fields{rest: data}
	q.name = f.string()
	for n := f.uint16(); n > 0 && !f.bad; n-- {
		q.wants = append(q.wants, f.uint16())
	}
	return q, f.end()
}

// metaQuery is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaQuery struct {
	name    string
	queries []string
}

func decodeMetaQuery(data []byte) (q metaQuery, err error) {
	f := fields{rest: data}
	q.name = f.string()
	for n := f.uint32(); n > 0 && !f.bad; n-- {
		q.queries = append(q.queries, f.string())
	}
	return q, f.end()
}

// request is a command as a client has sent it, without its payload.
type request struct {
	flags   uint16
	command command
	cookie  uint64
	offset  uint64
	length  uint32
}

func decodeRequest(b []byte) (r request, err error) {
	if len(b) != requestHeaderSize || binary.BigEndian.Uint32(b) != magicRequest {
		return r, fmt.Errorf("%w: a request begins wrongly", errProtocol)
	}
	return request{
		flags:   binary.BigEndian.Uint16(b[4:]),
		command: command(binary.BigEndian.Uint16(b[6:])),
		cookie:  binary.BigEndian.Uint64(b[8:]),
		offset:  binary.BigEndian.Uint64(b[16:]),
		length:  binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// dialect is what client and server have agreed on.
type dialect struct {
	structured bool
	allocation bool // BLOCK_STATUS has a context
}

// flags are those of the transmission.
func (d dialect) flags() uint16 {
	flags := uint16(canHaveFlags | canFlush | canFUA | canTrim | canWriteZeroes | canMultiConn | canCache | canFastZero)
	if d.structured {
		flags |= canDF
	}
	return flags
}

// allowedFlags are the flags that a command may have. FUA may be on all.
func (d dialect) allowedFlags(c command) uint16 {
	switch {
	case c == cmdWriteZeroes:
		return flagFUA | flagNoHole | flagFastZero
	case c == cmdBlockStatus:
		return flagFUA | flagReqOne
	case c == cmdRead && d.structured:
		return flagFUA | flagDF
	}
	return flagFUA
}

// check gives the error that a request is to be answered with, before anything
// of it is done, for an export of that size; 0 for one that can be done.
func (d dialect) check(r request, size uint64) unix.Errno {
	if r.flags&^d.allowedFlags(r.command) != 0 {
		return unix.EINVAL
	}
	if r.command == cmdFlush {
		return 0 // offset and length are reserved, and some clients fill them
	}
	inside := r.offset <= size && uint64(r.length) <= size-r.offset
	switch r.command {
	case cmdRead:
		if r.length > maxPayload && r.flags&flagDF != 0 {
			return unix.EOVERFLOW
		}
	case cmdWrite, cmdWriteZeroes:
		if !inside {
			return unix.ENOSPC
		}
	case cmdBlockStatus:
		if !d.allocation || r.length == 0 {
			return unix.EINVAL
		}
	case cmdTrim, cmdCache:
	default:
		return unix.EINVAL
	}
	tooLong := (r.command == cmdRead || r.command == cmdWrite) && r.length > maxPayload
	if !inside || tooLong {
		return unix.EINVAL
	}
	return 0
}

// errnoOf gives the protocol's number of an error. Its numbers are those of
// Linux; what it has none for is EIO.
func errnoOf(err error) unix.Errno {
	errno, _ := errors.AsType[unix.Errno](err)
	switch errno {
	case unix.EPERM, unix.EIO, unix.ENOMEM, unix.EINVAL, unix.ENOSPC, unix.EOVERFLOW, unix.ENOTSUP, unix.ESHUTDOWN:
		return errno
	case unix.EDQUOT, unix.EFBIG:
		return unix.ENOSPC
	}
	return unix.EIO
}

// replyRoom is what a buffer has before a READ's data, for the header: a little
// more than that takes, so that the data are aligned.
const replyRoom = 64

// readHeader writes the header of a successful READ so that it ends where the
// data begin, at replyRoom, and gives where it begins.
func (d dialect) readHeader(b []byte, r request) (begin int) {
	if !d.structured {
		begin = replyRoom - 16
		putSimple(b[begin:], r.cookie, 0)
		return begin
	}
	begin = replyRoom - 28
	putChunk(b[begin:], chunkDone, chunkOffsetData, r.cookie, 8+r.length)
	binary.BigEndian.PutUint64(b[begin+20:], r.offset)
	return begin
}

// done appends the reply to a request without data; errno 0 is success.
func (d dialect) done(b []byte, cookie uint64, errno unix.Errno) []byte {
	switch {
	case !d.structured:
		b = append(b, make([]byte, 16)...)
		putSimple(b[len(b)-16:], cookie, errno)
	case errno == 0:
		b = append(b, make([]byte, 20)...)
		putChunk(b[len(b)-20:], chunkDone, chunkNone, cookie, 0)
	default:
		b = append(b, make([]byte, 26)...)
		chunk := b[len(b)-26:]
		putChunk(chunk, chunkDone, chunkError, cookie, 6)
		binary.BigEndian.PutUint32(chunk[20:], uint32(errno)) // and no text
	}
	return b
}

// blockStatus appends the reply to BLOCK_STATUS.
func blockStatus(b []byte, cookie uint64, extents []extent) []byte {
	at := len(b)
	b = append(b, make([]byte, 24)...)
	putChunk(b[at:], chunkDone, chunkBlockStatus, cookie, uint32(4+8*len(extents)))
	binary.BigEndian.PutUint32(b[at+20:], contextAllocationID)
	for _, e := range extents {
		state := uint32(0)
		if e.hole {
			state = stateHole | stateZero
		}
		b = binary.BigEndian.AppendUint32(b, uint32(e.length))
		b = binary.BigEndian.AppendUint32(b, state)
	}
	return b
}

func putSimple(b []byte, cookie uint64, errno unix.Errno) {
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], uint32(errno))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

func putChunk(b []byte, flags, kind uint16, cookie uint64, length uint32) {
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint32(b[16:], length)
}
