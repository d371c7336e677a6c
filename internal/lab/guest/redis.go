package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"godwit.dev/godwit/internal/lab/load"
	"godwit.dev/godwit/internal/lab/witness"
)

const (
	redisProgram = "/usr/bin/redis-server"
	redisSocket  = "/tmp/redis.sock"
	// redisReady is how a line of its log ends when it listens.
	redisReady = "eady to accept connections"
)

// redis sets values of a page's size in a Redis of this guest that keeps them in memory
// only. Its keys are the numbers of the set's pages.
type redis struct {
	noise  *witness.Noise
	server *exec.Cmd
	conn   net.Conn
	in     *bufio.Reader
	out    *bufio.Writer
	keys   int // that there are
	value  [witness.PageSize]byte
}

// prepare starts the server, and sets every key of the set that is not there.
func (r *redis) prepare(l witness.Load) (err error) {
	keys := l.Set() / witness.PageSize
	const perKey = witness.PageSize * 3 / 2 // what Redis needs for one
	if err := enoughMemory((keys - r.keys) * perKey); err != nil {
		return err
	}
	if r.server == nil {
		if err := r.start(); err != nil {
			return err
		}
	}
	for r.keys < keys {
		var units [atOnce]int
		n := min(keys-r.keys, atOnce)
		for i := range units[:n] {
			units[i] = r.keys + i
		}
		if err := r.do(units[:n], l); err != nil {
			return err
		}
		r.keys += n
	}
	return nil
}

func (r *redis) start() error {
	server := exec.Command(redisProgram, "--port", "0", "--unixsocket", redisSocket, "--dir", "/tmp",
		"--save", "", "--appendonly", "no")
	log, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	r.server = server
	lines, last := bufio.NewScanner(log), ""
	for !strings.Contains(last, redisReady) {
		if !lines.Scan() {
			return fmt.Errorf("%s has ended: %s", redisProgram, last)
		}
		last = lines.Text()
	}
	go io.Copy(io.Discard, log)
	if r.conn, err = net.Dial("unix", redisSocket); err != nil {
		return err
	}
	r.in, r.out = bufio.NewReader(r.conn), bufio.NewWriterSize(r.conn, (atOnce+1)*witness.PageSize)
	return nil
}

// do sets values of keys, all in one go. The protocol is RESP, of redis.io.
func (r *redis) do(units []int, l witness.Load) error {
	for _, key := range units {
		load.Fill(r.value[:], l.ZeroPercent, r.noise)
		name := strconv.Itoa(key)
		fmt.Fprintf(r.out, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(r.value), r.value[:])
	}
	if err := r.out.Flush(); err != nil {
		return err
	}
	for range units {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return err
		}
		if line != "+OK\r\n" {
			return errors.New("redis: " + strings.TrimSpace(line))
		}
	}
	return nil
}

func (r *redis) close() {
	if r.conn != nil {
		r.conn.Close()
	}
	if r.server != nil {
		_ = r.server.Process.Kill()
		_ = r.server.Wait()
	}
	os.Remove(redisSocket)
}
