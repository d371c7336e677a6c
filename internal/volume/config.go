package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// The files of a volume's folder.
const (
	configName = "volume.json"
	leaseName  = "lease"
	dataName   = "data"
)

// fileMode is that of them all.
const fileMode = 0o600

// MaxSize bounds a volume: offsets are signed 64-bit numbers to the kernel,
// and ext4 with blocks of 4 KiB ends at 16 TiB, XFS at 8 EiB.
const MaxSize = fleet.Bytes(1) << 60

// config is what volume.json says.
type config struct {
	Size   fleet.Bytes `json:"size,omitempty"`   // of a file
	Device string      `json:"device,omitempty"` // path, in place of a file
}

func (c config) check() error {
	switch {
	case c.Device != "" && !filepath.IsAbs(c.Device):
		return fmt.Errorf("the device's path is not absolute: %s", c.Device)
	case c.Device != "" && c.Size != 0:
		return fmt.Errorf("a device has a size of its own")
	case c.Device == "" && (c.Size == 0 || c.Size > MaxSize):
		return fmt.Errorf("its size is not within 1B..%v", MaxSize)
	}
	return nil
}

// path is that of the bytes.
func (c config) path(dir string) string {
	if c.Device != "" {
		return c.Device
	}
	return filepath.Join(dir, dataName)
}

func readConfig(dir string) (c config, err error) {
	path := filepath.Join(dir, configName)
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}

func (c config) text() []byte {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		panic("volume: a size and a path have no JSON: " + err.Error())
	}
	return append(text, '\n')
}

func (c config) replace(dir string) error {
	return durable.WriteFile(filepath.Join(dir, configName), c.text(), fileMode)
}

// createVolume makes the folder of a volume: under another name first, so that
// a crash leaves a whole one or one that the next start removes.
func createVolume(dir string, c config) error {
	fresh := filepath.Join(filepath.Dir(dir), unfinished+filepath.Base(dir))
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := fillVolume(fresh, c); err != nil {
		_ = os.RemoveAll(fresh) // what is left, the next start removes
		return err
	}
	return durable.Rename(fresh, dir)
}

func fillVolume(dir string, c config) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if c.Device == "" {
		if err := createData(filepath.Join(dir, dataName), c.Size); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(filepath.Join(dir, configName), c.text(), fileMode); err != nil {
		return err
	}
	return createLeaseFile(filepath.Join(dir, leaseName))
}

// createData makes a file that is all hole.
func createData(path string, size fleet.Bytes) error {
	file, err := durable.Create(path, fileMode)
	if err != nil {
		return err
	}
	if err := file.Truncate(int64(size)); err != nil {
		return errors.Join(err, file.Discard())
	}
	return file.Commit()
}

// deleteVolume removes the folder of a volume, in one step for everybody who
// looks at it afterwards.
func deleteVolume(dir string) error {
	parent := filepath.Dir(dir)
	gone := filepath.Join(parent, unfinished+filepath.Base(dir))
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := durable.Rename(dir, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}
