package store

import (
	"errors"
	"io/fs"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"

	"godwit.dev/godwit/internal/fleet"
)

// Restore makes the folder of an embedded store from what Backup wrote to a
// file. A store that is there already is not touched: Exists. Revisions go on
// from where they were in the backup, so the caller has to see to it that nobody
// takes the old records for the present ones.
func Restore(backup string, config Config) error {
	config = config.withDefaults()
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return restoreFailed(fleet.Failed, config.Dir, "cannot make the folder", "", err)
	}
	lock, err := lockFolder(config.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	e := &embedded{dir: config.Dir, fatal: newFatalHook()}
	c := e.embedConfig(config)
	if _, err := os.Stat(c.Dir); !errors.Is(err, fs.ErrNotExist) {
		return restoreFailed(fleet.Exists, c.Dir, "there is a store already", "move it away, and keep it until all is well", err)
	}
	err = snapshot.NewV3(bridgeLogger(config.Logger, nil)).Restore(snapshot.RestoreConfig{
		SnapshotPath: backup, OutputDataDir: c.Dir, Name: c.Name,
		PeerURLs:       []string{c.AdvertisePeerUrls[0].String()},
		InitialCluster: c.InitialCluster, InitialClusterToken: embed.NewConfig().InitialClusterToken,
	})
	if err != nil {
		// What was begun would be taken for a store.
		err = errors.Join(err, os.RemoveAll(c.Dir))
		return restoreFailed(fleet.Invalid, backup, "it cannot be restored", "is it a whole file of godwit server backup?", err)
	}
	return nil
}

func restoreFailed(code fleet.Code, where, cause, hint string, err error) error {
	return &fleet.Error{Code: code, Op: "restore store", Subject: where, Cause: cause, Hint: hint, Err: err}
}
