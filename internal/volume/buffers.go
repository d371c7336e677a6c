package volume

import (
	"math/bits"
	"sync"
)

const (
	leastClass = 12 // 4 KiB
	mostClass  = 25 // maxPayload
	// buffersKept bounds what is kept of buffers that are not in use. They are
	// not left to the garbage collector: to have them zeroed and mapped anew
	// costs more than to copy what they carry.
	buffersKept = 64 << 20 // bytes
)

// buffers gives memory for requests and takes it back, that for data by the power
// of two that their size is within.
type buffers struct {
	mu   sync.Mutex
	free [mostClass - leastClass + 1][][]byte
	kept int
	jobs sync.Pool
}

// takeJob gives a job with any content but a buffer.
func (b *buffers) takeJob() *job {
	if j, ok := b.jobs.Get().(*job); ok {
		return j
	}
	return new(job)
}

// giveJob takes a job back that nobody uses any more.
func (b *buffers) giveJob(j *job) { b.jobs.Put(j) }

func class(size int) int { return max(bits.Len(uint(max(size, 1)-1)), leastClass) - leastClass }

// take gives a buffer with any content: replyRoom, and so many bytes.
func (b *buffers) take(size int) []byte {
	c := class(size)
	if kept := b.takeKept(c); kept != nil {
		return kept[:replyRoom+size]
	}
	return make([]byte, replyRoom+size, replyRoom+1<<(c+leastClass))
}

func (b *buffers) takeKept(class int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.free[class]) - 1
	if last < 0 {
		return nil
	}
	taken := b.free[class][last]
	b.free[class][last] = nil
	b.free[class] = b.free[class][:last]
	b.kept -= cap(taken)
	return taken
}

// give takes a buffer back that nobody uses any more.
func (b *buffers) give(buffer []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept+cap(buffer) > buffersKept {
		return
	}
	c := class(cap(buffer) - replyRoom)
	b.free[c] = append(b.free[c], buffer)
	b.kept += cap(buffer)
}
