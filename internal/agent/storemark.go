package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
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

// noteMark keeps what a server says that has taken the session. A crash of the
// host may lose the last ones: what is left is still newer than any backup but
// one of the last seconds.
func (a *Agent) noteMark(mark *godwitv1.StoreMark) {
	if mark == nil || proto.Equal(mark, a.mark.Load()) {
		return
	}
	a.mark.Store(mark)
	path := filepath.Join(a.config.Dir, markFile)
	text, err := json.Marshal(mark)
	if err == nil {
		err = os.WriteFile(path+".next", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".next", path)
	}
	if err != nil {
		a.log.Warn("what the server says of its store is not kept", "error", err)
	}
}
