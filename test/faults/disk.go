package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/witness"
)

const (
	diskSize = 64 << 20
	// recordsPerSecond fills the disk in more than five minutes: within a cell
	// no record is overwritten by one a lap later.
	recordsPerSecond = 50
	followEvery      = 10 * time.Millisecond
)

// follower reads a guest's disk as it is written, past the page cache, as
// another host would.
type follower struct {
	file   *os.File
	blocks uint64
	block  []byte // page-aligned, as O_DIRECT wants it

	halt    chan struct{}
	reading sync.WaitGroup
	saw     written
	err     error
}

// written is what there was on a guest's disk. Record n is at index n-1.
type written struct {
	name         string
	acknowledged uint64           // the last record that the guest has said to be written
	first        []witness.Record // when each was first seen
	last         []witness.Record // at the end; zero where there is none any more
	at           []time.Time      // when each was first seen; none if it was read afterwards
}

// follow begins to read the file of a disk's bytes; stop must follow.
func follow(name, path string) (*follower, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) { // a file system without it has one cache for all
		file, err = os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	block, err := unix.Mmap(-1, 0, witness.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	f := &follower{file: file, blocks: uint64(info.Size()) / witness.BlockSize, block: block, halt: make(chan struct{}), saw: written{name: name}}
	f.reading.Go(func() { f.err = f.run() })
	return f, nil
}

func (f *follower) run() error {
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for {
		if err := f.catchUp(); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-f.halt:
			return f.catchUp()
		}
	}
}

// catchUp reads the records that have been written since.
func (f *follower) catchUp() error {
	for {
		record, there, err := f.read(uint64(len(f.saw.first)) + 1)
		if err != nil || !there {
			return err
		}
		f.saw.first, f.saw.at = append(f.saw.first, record), append(f.saw.at, time.Now())
	}
}

// read gives a record, if it is there and whole.
func (f *follower) read(sequence uint64) (record witness.Record, there bool, err error) {
	_, err = f.file.ReadAt(f.block, int64(sequence%f.blocks)*witness.BlockSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return record, false, fmt.Errorf("read the guest's disk: %w", err)
	}
	record, err = witness.ParseRecord(f.block)
	return record, err == nil && record.Sequence == sequence, nil
}

// stop reads all records once more and gives what was seen. The guest must not
// write any more.
func (f *follower) stop() (written, error) {
	close(f.halt)
	f.reading.Wait()
	err := f.err
	for i := range f.saw.first {
		record, _, readErr := f.read(uint64(i) + 1)
		err = errors.Join(err, readErr)
		f.saw.last = append(f.saw.last, record)
	}
	return f.saw, errors.Join(err, f.file.Close(), unix.Munmap(f.block))
}

// longestGap is the longest time without a new record within a window, and up
// to its end; 0 if it was read afterwards.
func (w written) longestGap(from, to time.Time) (gap time.Duration) {
	if len(w.at) == 0 {
		return 0
	}
	last := from
	for _, at := range w.at {
		if at.After(from) && at.Before(to) {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return max(gap, to.Sub(last))
}
