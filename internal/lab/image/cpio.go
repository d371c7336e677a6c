package image

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// File modes of a cpio archive, as in stat(2).
const (
	modeFolder     = 0o040755
	modeFile       = 0o100644
	modeExecutable = 0o100755
)

// archive writes a cpio archive of format "newc"; the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst describes it.
type archive struct {
	w     io.Writer
	inode int
}

// add writes one file or folder; a folder comes before what is in it.
func (a *archive) add(name string, mode uint32, content []byte) error {
	a.inode++
	const uid, gid, links, mtime, major, minor, check = 0, 0, 1, 0, 0, 0, 0
	header := fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, uid, gid, links, mtime, len(content), major, minor, major, minor, len(name)+1, check, name)
	if err := a.write(header); err != nil {
		return err
	}
	return a.write(content)
}

// addFiles adds files of this machine, which have absolute paths, and the folders that
// they are in. What is named twice is added once.
func (a *archive) addFiles(paths []string) error {
	var folders []string
	for _, path := range paths {
		for folder := filepath.Dir(path); folder != "/"; folder = filepath.Dir(folder) {
			folders = append(folders, folder)
		}
	}
	slices.Sort(folders) // parents first
	for _, folder := range slices.Compact(folders) {
		if err := a.add(strings.TrimPrefix(folder, "/"), modeFolder, nil); err != nil {
			return err
		}
	}
	for _, path := range slices.Compact(slices.Sorted(slices.Values(paths))) {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := a.add(strings.TrimPrefix(path, "/"), modeExecutable, content); err != nil {
			return err
		}
	}
	return nil
}

// write pads what it writes to a multiple of four bytes.
func (a *archive) write(b []byte) error {
	if _, err := a.w.Write(b); err != nil {
		return err
	}
	_, err := a.w.Write(make([]byte, -len(b)&3))
	return err
}

// finish writes the record that ends an archive.
func (a *archive) finish() error { return a.add("TRAILER!!!", 0, nil) }
