package volume

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// handshakeWithin bounds everything before the transmission.
	handshakeWithin = 30 * time.Second
	// maxOptions bounds what a client may ask before it decides.
	maxOptions = 1024
)

// errOver is a negotiation that the client has ended as it may.
var errOver = errors.New("the client has ended the negotiation")

// handshake is the part of a connection before the transmission.
type handshake struct {
	server *Server
	conn   net.Conn // with TLS once there is
	raw    net.Conn // without
	peer   Peer
	secure bool // TLS is there, or not needed

	dialect     dialect
	noZeroes    bool   // after EXPORT_NAME
	contextName string // the export for which the client has set the context
}

// begin greets, and reads the client's flags.
func (h *handshake) begin() error {
	hello := binary.BigEndian.AppendUint64(nil, magicHello)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(hello); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(h.conn, answer[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(answer[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: it sets the unknown flags %#x", errProtocol, flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	return nil
}

// run negotiates until the client has chosen an export, or gone.
func (h *handshake) run(ctx context.Context) (*attachment, error) {
	if err := h.begin(); err != nil {
		return nil, err
	}
	for range maxOptions {
		header, data, err := h.readOption()
		if err != nil {
			return nil, err
		}
		chosen, err := h.answer(ctx, header, data)
		if chosen != nil || err != nil {
			return chosen, err
		}
	}
	return nil, fmt.Errorf("%w: it has sent %d options", errProtocol, maxOptions)
}

func (h *handshake) readOption() (header optionHeader, data []byte, err error) {
	var b [optionHeaderSize]byte
	if _, err := io.ReadFull(h.conn, b[:]); err != nil {
		return header, nil, err
	}
	if header, err = decodeOptionHeader(b[:]); err != nil {
		return header, nil, err
	}
	if header.length > maxOptionData {
		return header, nil, fmt.Errorf("%w: an option has %d bytes of data", errProtocol, header.length)
	}
	data = make([]byte, header.length)
	_, err = io.ReadFull(h.conn, data)
	return header, data, err
}

// answer deals with one option. An attachment ends the negotiation.
func (h *handshake) answer(ctx context.Context, header optionHeader, data []byte) (*attachment, error) {
	if !h.secure {
		return nil, h.answerOpenly(ctx, header.kind, data)
	}
	switch header.kind {
	case optAbort:
		return nil, h.abort()
	case optExportName:
		return h.exportName(data)
	case optInfo, optGo:
		return h.infoOrGo(header.kind, data)
	case optList:
		return nil, h.list(data)
	case optStructured:
		return nil, h.structured(data)
	case optListMetaContext, optSetMetaContext:
		return nil, h.metaContext(header.kind, data)
	case optStartTLS:
		return nil, h.refuse(header.kind, repErrInvalid, "TLS has begun already, or is not needed here")
	}
	return nil, h.refuse(header.kind, repErrUnsupported, "")
}

// answerOpenly tells nothing to whoever has not begun TLS.
func (h *handshake) answerOpenly(ctx context.Context, kind optionKind, data []byte) error {
	switch {
	case kind == optAbort:
		return h.abort()
	case kind == optExportName:
		return fmt.Errorf("%w: it wants an export without TLS", errProtocol)
	case kind != optStartTLS:
		return h.refuse(kind, repErrTLSRequired, "this server speaks TLS only")
	case len(data) > 0:
		return h.refuse(kind, repErrInvalid, "STARTTLS has no data")
	}
	if err := h.reply(kind, repAck, nil); err != nil {
		return err
	}
	return h.startTLS(ctx)
}

func (h *handshake) startTLS(ctx context.Context) error {
	secure := tls.Server(h.conn, h.server.config.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("begin TLS: %w", err)
	}
	peer, err := h.server.config.Identify(secure.ConnectionState())
	if err != nil {
		return err
	}
	h.conn, h.peer, h.secure = secure, peer, true
	return nil
}

func (h *handshake) abort() error {
	_ = h.reply(optAbort, repAck, nil) // the client may be gone already
	return errOver
}

func (h *handshake) reply(kind optionKind, reply replyKind, data []byte) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 20+len(data)), magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(reply))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := h.conn.Write(append(b, data...))
	return err
}

func (h *handshake) refuse(kind optionKind, reply replyKind, text string) error {
	return h.reply(kind, reply, []byte(text))
}

// refuseFor tells why an export can't be had; clients show the text.
func (h *handshake) refuseFor(kind optionKind, err error) error {
	reply, text := repErrPolicy, err.Error()
	if fleet.CodeOf(err) == fleet.NotFound {
		reply = repErrUnknown
	}
	if hint := fleet.HintOf(err); hint != "" {
		text += " (" + hint + ")"
	}
	return h.refuse(kind, reply, text[:min(len(text), maxString)])
}

// volumeAt names the export of a volume for an epoch.
func volumeAt(name fleet.VolumeName, epoch fleet.Epoch) string {
	return fmt.Sprintf("%s@%d", name, epoch)
}

// parseExport takes an export's name apart: VOLUME@EPOCH, or VOLUME alone.
func parseExport(name string) (fleet.VolumeName, fleet.Epoch, error) {
	volume, text, found := strings.Cut(name, "@")
	if !found {
		return fleet.VolumeName(volume), 0, nil
	}
	epoch, err := strconv.ParseUint(text, 10, 64)
	if err != nil || epoch == 0 || strconv.FormatUint(epoch, 10) != text {
		return "", 0, &fleet.Error{
			Code: fleet.NotFound, Op: "find", Subject: "export " + strconv.Quote(name), Cause: "its epoch is not a number of 1 or more",
			Hint: "exports are named VOLUME@EPOCH",
		}
	}
	return fleet.VolumeName(volume), fleet.Epoch(epoch), nil
}

// look gives the volume of an export that the peer may use now.
func (h *handshake) look(name string) (*volume, fleet.Epoch, error) {
	volume, epoch, err := parseExport(name)
	if err != nil {
		return nil, 0, err
	}
	v, err := h.server.config.Volumes.find(volume)
	if err != nil {
		return nil, 0, err
	}
	v.gate.RLock()
	defer v.gate.RUnlock()
	return v, epoch, v.admit(h.peer, epoch)
}

func (h *handshake) attach(name string) (*attachment, error) {
	v, epoch, err := h.look(name)
	if err != nil {
		return nil, err
	}
	raw := h.raw
	// The connection below TLS is closed, without a word: whoever is cut may be
	// stopped and never read it.
	return v.attach(h.peer, epoch, func() { _ = raw.Close() })
}

func (h *handshake) exportName(data []byte) (*attachment, error) {
	if !isString(data) {
		return nil, fmt.Errorf("%w: the export's name is no string", errProtocol)
	}
	a, err := h.attach(string(data))
	if err != nil {
		return nil, err // the protocol has no other answer than the end
	}
	h.settle(string(data))
	b := binary.BigEndian.AppendUint64(nil, a.volume.size.Load())
	b = binary.BigEndian.AppendUint16(b, h.dialect.flags())
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := h.conn.Write(b); err != nil {
		a.detach()
		return nil, err
	}
	return a, nil
}

// settle drops the context that was set for another export.
func (h *handshake) settle(name string) {
	h.dialect.allocation = h.dialect.allocation && h.contextName == name
}

func (h *handshake) infoOrGo(kind optionKind, data []byte) (*attachment, error) {
	query, err := decodeInfoQuery(data)
	if err != nil {
		return nil, h.refuse(kind, repErrInvalid, err.Error())
	}
	if kind == optInfo {
		v, _, err := h.look(query.name)
		if err != nil {
			return nil, h.refuseFor(kind, err)
		}
		return nil, h.tell(kind, v, query)
	}
	a, err := h.attach(query.name)
	if err != nil {
		return nil, h.refuseFor(kind, err)
	}
	h.settle(query.name)
	if err := h.tell(kind, a.volume, query); err != nil {
		a.detach()
		return nil, err
	}
	return a, nil
}

// tell answers INFO and GO for an export that can be had.
func (h *handshake) tell(kind optionKind, v *volume, query infoQuery) error {
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, v.size.Load())
	export = binary.BigEndian.AppendUint16(export, h.dialect.flags())
	infos := [][]byte{export}
	if slices.Contains(query.wants, infoName) {
		infos = append(infos, append(binary.BigEndian.AppendUint16(nil, infoName), query.name...))
	}
	if slices.Contains(query.wants, infoBlockSize) {
		sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
		for _, size := range []uint32{1, blockPreferred, maxPayload} {
			sizes = binary.BigEndian.AppendUint32(sizes, size)
		}
		infos = append(infos, sizes)
	}
	for _, info := range infos {
		if err := h.reply(kind, repInfo, info); err != nil {
			return err
		}
	}
	return h.reply(kind, repAck, nil)
}

// list names the exports that the peer may use now.
func (h *handshake) list(data []byte) error {
	if len(data) > 0 {
		return h.refuse(optList, repErrInvalid, "LIST has no data")
	}
	for _, v := range h.server.config.Volumes.all() {
		for _, name := range v.exports(h.peer) {
			b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
			if err := h.reply(optList, repServer, append(b, name...)); err != nil {
				return err
			}
		}
	}
	return h.reply(optList, repAck, nil)
}

// exports gives the names under which a peer may use the volume.
func (v *volume) exports(peer Peer) (names []string) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	epochs := []fleet.Epoch{0, v.lease.Epoch}
	for _, s := range v.lease.Standbys {
		epochs = append(epochs, s.Epoch)
	}
	for _, epoch := range slices.Compact(epochs) {
		switch {
		case v.admit(peer, epoch) != nil:
		case epoch == 0:
			names = append(names, string(v.name))
		default:
			names = append(names, volumeAt(v.name, epoch))
		}
	}
	return names
}

func (h *handshake) structured(data []byte) error {
	if len(data) > 0 {
		return h.refuse(optStructured, repErrInvalid, "STRUCTURED_REPLY has no data")
	}
	h.dialect.structured = true
	return h.reply(optStructured, repAck, nil)
}

// metaContext lists or sets the metadata contexts, of which there is one.
func (h *handshake) metaContext(kind optionKind, data []byte) error {
	set := kind == optSetMetaContext
	if set {
		h.dialect.allocation, h.contextName = false, "" // whatever comes of it
	}
	query, err := decodeMetaQuery(data)
	if err == nil && !h.dialect.structured {
		err = errors.New("structured replies come first")
	}
	if err != nil {
		return h.refuse(kind, repErrInvalid, err.Error())
	}
	if _, _, err := h.look(query.name); err != nil {
		return h.refuseFor(kind, err)
	}
	if !query.matches(set) {
		return h.reply(kind, repAck, nil)
	}
	id := uint32(0) // reserved in a list
	if set {
		h.dialect.allocation, h.contextName, id = true, query.name, contextAllocationID
	}
	if err := h.reply(kind, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), contextAllocation...)); err != nil {
		return err
	}
	return h.reply(kind, repAck, nil)
}

// matches tells whether a query is for base:allocation. To list it, no query
// and the bare namespace are enough.
func (q metaQuery) matches(set bool) bool {
	if slices.Contains(q.queries, contextAllocation) {
		return true
	}
	return !set && (len(q.queries) == 0 || slices.Contains(q.queries, "base:"))
}
