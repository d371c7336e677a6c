package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// StrictJSON makes a handler refuse JSON with a field that the request does not
// have: InvalidArgument, which names the field. Connect's own codec passes over
// it, so that a misspelt "target" would move a VM to wherever there is room.
// It is for handlers only: a client must bear the answers of a newer server.
func StrictJSON() connect.HandlerOption {
	// The names of Connect's own two, which a handler finds by content type.
	return connect.WithHandlerOptions(
		connect.WithCodec(strictJSON{"json"}),
		connect.WithCodec(strictJSON{"json; charset=utf-8"}),
	)
}

type strictJSON struct{ name string }

func (c strictJSON) Name() string { return c.name }

func (strictJSON) Marshal(message any) ([]byte, error) {
	known, err := protoMessage(message)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(known)
}

func (strictJSON) Unmarshal(data []byte, message any) error {
	known, err := protoMessage(message)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return errors.New("it is empty; the least that is JSON is {}")
	}
	if err := protojson.Unmarshal(data, known); err != nil {
		return fmt.Errorf("this is no %s: %w", known.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}

func protoMessage(message any) (proto.Message, error) {
	known, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", message)
	}
	return known, nil
}

// CompactJSON gives a message as one line of JSON, without the line's end.
// Fields that are not set are there too, so that programs need not ask whether
// they are.
func CompactJSON(message proto.Message) (json.RawMessage, error) {
	data, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer // protojson varies its spaces on purpose
	if err := json.Compact(&compact, data); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}
