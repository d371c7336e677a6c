package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/durable"
)

// modules are what the guest loads, in the order in which it loads them:
// virtio over PCI, network, disk, and the power button.
var modules = [...]string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "virtio_blk",
	"evdev", "button",
}

// Build makes the image in a cache folder that holds the extracted kernel
// package, with the go tool. If the image there is of the same content
// already, it is left alone.
func Build(ctx context.Context, cache string) (Image, error) {
	tree := filepath.Join(cache, "kernel")
	kernel, err := only(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return Image{}, missing("build the guest image", err)
	}
	dir := filepath.Join(cache, "guest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	program, err := compile(ctx, dir)
	if err != nil {
		return Image{}, err
	}
	initrd, err := pack(tree, program, modules[:], nil)
	if err != nil {
		return Image{}, err
	}
	bzImage, err := os.ReadFile(kernel)
	if err != nil {
		return Image{}, err
	}
	img := Image{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}
	return img, errors.Join(replace(img.Kernel, bzImage), replace(img.Initrd, initrd))
}

// BuildFor makes an image in dir that has a static program as its init and these kernel
// modules, in the order in which they are to be loaded, from the kernel package in the
// cache folder.
func BuildFor(cache, dir, program string, modules ...string) (Image, error) {
	init, err := os.ReadFile(program)
	if err != nil {
		return Image{}, err
	}
	return build(cache, dir, init, modules, nil)
}

// BuildWith makes in dir the image that Build makes, with programs of this machine added:
// each is at the same path there, with the shared libraries that it loads.
func BuildWith(ctx context.Context, cache, dir string, programs ...string) (Image, error) {
	paths := slices.Clone(programs)
	for _, program := range programs {
		libraries, err := librariesOf(ctx, program)
		if err != nil {
			return Image{}, err
		}
		paths = append(paths, libraries...)
	}
	var files []file
	for _, path := range paths {
		files = append(files, file{at: path, from: path})
	}
	return buildGuest(ctx, cache, dir, files)
}

// BuildFrom makes in dir the image that Build makes, with parts of a Debian added that is
// unpacked in the folder root, an absolute path: programs, each with the shared libraries that it loads, and
// whole folders. They are at the same paths there as in root.
func BuildFrom(ctx context.Context, cache, dir, root string, programs, folders []string) (Image, error) {
	paths := slices.Clone(programs)
	for _, program := range programs {
		libraries, err := librariesIn(ctx, root, program)
		if err != nil {
			return Image{}, err
		}
		paths = append(paths, libraries...)
	}
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				paths = append(paths, strings.TrimPrefix(path, root))
			}
			return err
		})
		if err != nil {
			return Image{}, err
		}
	}
	var files []file
	for _, path := range paths {
		from, err := resolve(root, path)
		if err != nil {
			return Image{}, err
		}
		files = append(files, file{at: path, from: from})
	}
	return buildGuest(ctx, cache, dir, files)
}

// buildGuest makes an image of the lab's guest in dir, with more files.
func buildGuest(ctx context.Context, cache, dir string, files []file) (Image, error) {
	init, err := compile(ctx, dir)
	if err != nil {
		return Image{}, err
	}
	return build(cache, dir, init, modules[:], files)
}

// build puts an image into dir, but for the kernel.
func build(cache, dir string, init []byte, modules []string, files []file) (Image, error) {
	tree := filepath.Join(cache, "kernel")
	kernel, err := only(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return Image{}, missing("build a test's image", err)
	}
	initrd, err := pack(tree, init, modules, files)
	if err != nil {
		return Image{}, err
	}
	img := Image{Kernel: kernel, Initrd: filepath.Join(dir, "initrd")}
	return img, os.WriteFile(img.Initrd, initrd, 0o600)
}

// pack gives the initramfs, uncompressed: an emulated CPU copies it faster than it
// unpacks it.
func pack(tree string, program []byte, modules []string, files []file) (initrd []byte, err error) {
	var out bytes.Buffer
	a := archive{w: &out}
	write := func(name string, mode uint32, content []byte) {
		if err == nil {
			err = a.add(name, mode, content)
		}
	}
	for _, folder := range []string{"dev", "proc", "sys", "tmp", "modules"} {
		write(folder, modeFolder, nil)
	}
	write("init", modeExecutable, program)
	var order strings.Builder
	for _, module := range modules {
		content, rerr := readModule(tree, module)
		if rerr != nil {
			return nil, rerr
		}
		fmt.Fprintf(&order, "%s.ko\n", module)
		write("modules/"+module+".ko", modeFile, content)
	}
	write("modules/order", modeFile, []byte(order.String()))
	if err == nil {
		err = a.addFiles(files)
	}
	if err == nil {
		err = a.finish()
	}
	return out.Bytes(), err
}

// compile builds the guest's init: static, and the same for the same source.
func compile(ctx context.Context, dir string) ([]byte, error) {
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -buildid=", "-o", program, "godwit.dev/godwit/internal/lab/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the guest's init: %w\n%s", err, out)
	}
	return os.ReadFile(program)
}

// readModule finds a kernel module by name, wherever it is in the tree.
func readModule(tree, name string) ([]byte, error) {
	var found string
	err := filepath.WalkDir(filepath.Join(tree, "lib", "modules"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Name() == name+".ko" {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, missing("build the guest image", err)
	}
	if found == "" {
		return nil, missing("build the guest image", fmt.Errorf("kernel module %s is not in %s", name, tree))
	}
	return os.ReadFile(found)
}

// only gives the one path that matches the pattern.
func only(pattern string) (string, error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(paths) != 1 {
		return "", fmt.Errorf("%d files match %s, want one", len(paths), pattern)
	}
	return paths[0], nil
}

// replace puts content at path in one step, unless it is there already.
func replace(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return durable.WriteFile(path, content, 0o644)
}
