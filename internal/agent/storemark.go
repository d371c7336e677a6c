package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/durable"
)

// markFile keeps the newest point in the history of the servers' store that
// this host was told of. By it a server finds out that its store is an old
// copy, before it does harm with what that says.
const markFile = "store.json"

func loadMark(dir string) (*godwitv1.StoreMark, error) {
	text, err := os.ReadFile(filepath.Join(dir, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mark := &godwitv1.StoreMark{}
	return mark, json.Unmarshal(text, mark)
}

// noteMark keeps what a server says that has taken the session. A crash may lose
// the last ones: what is left is still newer than any backup but one of the last
// seconds.
func (a *Agent) noteMark(mark *godwitv1.StoreMark) {
	if mark == nil || proto.Equal(mark, a.mark.Load()) {
		return
	}
	a.mark.Store(mark)
	select {
	case a.marked <- struct{}{}:
	default: // it is waited for already, and the newest is written
	}
}

// keepMarks writes down what was noted, apart from whoever hears of it: a disk
// may be slow, and commands come on the same line.
func (a *Agent) keepMarks(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-a.marked:
			a.keepMark()
		case <-ctx.Done():
		}
	}
	select {
	case <-a.marked:
		a.keepMark()
	default:
	}
}

func (a *Agent) keepMark() {
	text, err := json.Marshal(a.mark.Load())
	if err == nil {
		err = durable.WriteFile(filepath.Join(a.config.Dir, markFile), text, 0o600)
	}
	if err != nil {
		a.log.Warn("what the server says of its store is not kept", "error", err)
	}
}
