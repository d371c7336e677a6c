package server

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// serverService is the API of the servers themselves.
type serverService struct{ server *Server }

func (s serverService) Status(context.Context, *godwitv1.StatusRequest) (*godwitv1.StatusResponse, error) {
	own, elsewhere, _ := s.server.leader.now()
	status := &godwitv1.StatusResponse{Url: s.server.leader.own, Leads: own != nil, Leader: elsewhere}
	_, status.Restored = s.server.mirror.recovery()
	if status.GetLeads() {
		status.Leader = status.GetUrl()
	}
	return status, nil
}

// backupChunk is the size of one message of a backup, in bytes.
const backupChunk = 256 << 10

// Backup sends the store's snapshot as it comes.
func (s serverService) Backup(ctx context.Context, _ *godwitv1.BackupRequest, stream *connect.ServerStream[godwitv1.BackupResponse]) error {
	return s.server.config.Store.Backup(ctx, backupWriter{stream})
}

type backupWriter struct {
	stream *connect.ServerStream[godwitv1.BackupResponse]
}

func (w backupWriter) Write(data []byte) (written int, err error) {
	for len(data) > 0 {
		part := data[:min(len(data), backupChunk)]
		if err := w.stream.Send(&godwitv1.BackupResponse{Data: part}); err != nil {
			return written, err
		}
		written += len(part)
		data = data[len(part):]
	}
	return written, nil
}
