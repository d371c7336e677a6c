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

// file is a file of this machine, and its absolute path in the archive.
type file struct{ at, from string }

// addFiles adds files, and the folders that they are in. What is named twice is added
// once.
func (a *archive) addFiles(files []file) error {
	var folders []string
	for _, f := range files {
		for folder := filepath.Dir(f.at); folder != "/"; folder = filepath.Dir(folder) {
			folders = append(folders, folder)
		}
	}
	slices.Sort(folders) // parents first
	for _, folder := range slices.Compact(folders) {
		if err := a.add(strings.TrimPrefix(folder, "/"), modeFolder, nil); err != nil {
			return err
		}
	}
	files = slices.SortedFunc(slices.Values(files), func(a, b file) int { return strings.Compare(a.at, b.at) })
	for _, f := range slices.CompactFunc(files, func(a, b file) bool { return a.at == b.at }) {
		content, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		if err := a.add(strings.TrimPrefix(f.at, "/"), modeExecutable, content); err != nil {
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
