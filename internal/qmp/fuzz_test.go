package qmp

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzMonitor lets a QEMU say anything after its greeting: the client ends, or
// goes on, and every call returns.
func FuzzMonitor(f *testing.F) {
	for _, seed := range []string{
		`{"return": {}, "id": 1}` + "\n" + `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" + `{"return": {"status": "running", "running": true}, "id": 2}` + "\n",
		`{"error": {"class": "GenericError", "desc": "no"}, "id": 1}` + "\n",
		`{"event": "MIGRATION", "data": {"status": 7}, "timestamp": {"seconds": 9223372036854775807, "microseconds": 9223372036854775807}}` + "\n",
		`{"id": 1}` + "\n", "{}\n", "null\n", "[]\n", "\n", `{"return": {}, "id": 1`, "\xff\xfe\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			_, _ = io.WriteString(theirs, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}`+"\n")
			_, _ = theirs.Write(said)
			theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		client, err := NewClient(ctx, ours)
		if err != nil {
			return
		}
		events := client.Subscribe(4)
		_, _ = QueryStatus(ctx, client)
		for event := range events.Events() {
			var data MigrationEvent
			_ = event.Decode(&data)
		}
		<-client.Done()
		if ctx.Err() != nil {
			t.Error("a call did not return")
		}
		client.Close()
	})
}
