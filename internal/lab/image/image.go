package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/fleet"
)

// CacheEnv names the environment variable that says where the cache folder is.
const CacheEnv = "GODWIT_CACHE"

// Image is what QEMU is given as -kernel and -initrd.
type Image struct {
	Kernel string
	Initrd string
}

// Locate finds the image that was built before: in the folder that CacheEnv
// names, else in .cache of the source tree that the working folder or the
// running program lies in.
func Locate() (Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return Image{}, err
	}
	return Load(cache)
}

// Load gives the image in a cache folder, or a fleet.NotFound error.
func Load(cache string) (Image, error) {
	cache, err := filepath.Abs(cache) // QEMU runs in another folder
	if err != nil {
		return Image{}, missing("find the guest image", err)
	}
	img := Image{
		Kernel: filepath.Join(cache, "guest", "vmlinuz"),
		Initrd: filepath.Join(cache, "guest", "initrd"),
	}
	for _, path := range []string{img.Kernel, img.Initrd} {
		if _, err := os.Stat(path); err != nil {
			return Image{}, missing("find the guest image", err)
		}
	}
	return img, nil
}

// CacheDir gives the cache folder by the rules of Locate. It need not exist.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, start := range starts {
		if root, err := moduleRoot(start); err == nil {
			return filepath.Join(root, ".cache"), nil
		}
	}
	return "", missing("find the guest image", errors.New("not in a source tree"))
}

// moduleRoot walks up from dir to the folder with go.mod.
func moduleRoot(dir string) (string, error) {
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
		dir = parent
	}
}

func missing(op string, err error) error {
	return &fleet.Error{
		Code: fleet.NotFound, Op: op, Err: err,
		Hint: "run 'make setup' in the source tree, or set " + CacheEnv + " to its .cache folder",
	}
}
