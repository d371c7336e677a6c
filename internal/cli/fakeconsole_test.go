package cli_test

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Console is that of a VM which asks for a word, says it, moves to host-b, and ends.
// Of VM cut the server goes away after the word.
func (f *fakeServer) Console(ctx context.Context, request *godwitv1.ConsoleRequest, stream *connect.ServerStream[godwitv1.ConsoleResponse]) error {
	if request.GetName() == "batch" {
		return &fleet.Error{Code: fleet.Conflict, Op: "open console", Subject: "vm batch", Cause: "it is stopped", Hint: "start it: godwit vm start batch"}
	}
	if err := f.note(request); err != nil {
		return err
	}
	if request.GetEpoch() == 0 {
		err := stream.Send(&godwitv1.ConsoleResponse{Host: "host-a", Epoch: 1, Offset: 6, Output: []byte("word? ")})
		if err != nil {
			return err
		}
		var word []byte
		select {
		case word = <-f.typed:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := stream.Send(&godwitv1.ConsoleResponse{Epoch: 1, Offset: 10, Output: word}); err != nil || request.GetName() == "cut" {
			return err
		}
	}
	for _, message := range []*godwitv1.ConsoleResponse{
		{Host: "host-b", Epoch: 2, Offset: 5, Output: []byte("here\n")}, {Ended: "vm web1 is stopped"},
	} {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeServer) Type(ctx context.Context, request *godwitv1.TypeRequest) (*godwitv1.TypeResponse, error) {
	select {
	case f.typed <- request.GetInput():
		return &godwitv1.TypeResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
