// Package durable writes files so that they are whole and in their place after
// the host has lost its power: the content is on the disk before the name is,
// and the name before the call returns. Syncing the file alone is not enough: its
// name is in the folder.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// File is the next content of a file. It lies beside it, under another name,
// until Commit.
type File struct {
	*os.File
	path string
}

// Create begins a file that is to be at path, or to replace what is there.
func Create(path string, mode fs.FileMode) (*File, error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	f := &File{file, path}
	if err := file.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	return f, nil
}

// Commit puts the file in its place, for good. After an error what was there
// before is there still, unless the disk has failed between the last two steps.
func (f *File) Commit() error {
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, f.Discard())
	}
	return SyncFolder(filepath.Dir(f.path))
}

// Discard removes what was written. After Commit it does nothing.
func (f *File) Discard() error {
	_ = f.Close() // nobody needs the content any more
	if err := os.Remove(f.Name()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteFile replaces a file in one step: readers and crashes see the old or the
// new content, never a part.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	file, err := Create(path, mode)
	if err != nil {
		return err
	}
	if _, err := file.Write(data); err != nil {
		return errors.Join(err, file.Discard())
	}
	return file.Commit()
}

// Rename gives a file or folder another name, for good.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	err := SyncFolder(filepath.Dir(to))
	if filepath.Dir(from) != filepath.Dir(to) {
		err = errors.Join(err, SyncFolder(filepath.Dir(from)))
	}
	return err
}

// MakeFolder makes a folder, and those above it that are missing.
func MakeFolder(path string, mode fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	above := filepath.Dir(path)
	if above != path {
		if err := MakeFolder(above, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncFolder(above)
}

// SyncFolder makes sure of the names in a folder.
func SyncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
