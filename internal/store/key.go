package store

import (
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// maxKey bounds a key, in bytes.
const maxKey = 512

// Keys of records are relative: "vms/web1". The store's prefix is added here
// and nowhere else.
func (s *Store) absolute(key string) string { return s.config.Prefix + key }

func (s *Store) relative(key []byte) string {
	return strings.TrimPrefix(string(key), s.config.Prefix)
}

// span gives the etcd range of all keys under prefix that come after after.
func (s *Store) span(prefix, after string) (from, end string) {
	from = s.absolute(prefix)
	end = clientv3.GetPrefixRangeEnd(from)
	if next := s.absolute(after) + "\x00"; after != "" && next > from {
		from = next
	}
	return from, end
}

func checkKey(key string) error {
	if key != "" && len(key) <= maxKey && !strings.HasPrefix(key, "/") && !strings.ContainsRune(key, 0) {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "address record", Subject: fmt.Sprintf("%q", key),
		Cause: fmt.Sprintf("a key has 1 to %d bytes, no leading slash and no zero byte", maxKey),
	}
}
