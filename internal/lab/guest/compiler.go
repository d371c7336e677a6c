package main

import (
	"fmt"
	"os"
	"os/exec"

	"godwit.dev/godwit/internal/lab/witness"
)

const (
	compilerProgram = "/usr/bin/tcc"
	compilerSource  = "/tmp/source.c"
	// objects is how many outputs are kept, of some 600 KiB each. The file system of
	// the guest's root is in its memory.
	objects      = 32
	compilerRoom = 48 << 20
)

// source is a C file of 25,000 lines, most of them from Debian's libstb-dev.
const source = `
#define STBI_NO_SIMD
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_TRUETYPE_IMPLEMENTATION
#define STB_SPRINTF_IMPLEMENTATION
#define STB_PERLIN_IMPLEMENTATION
#define STB_DS_IMPLEMENTATION
#include <stb/stb_image.h>
#include <stb/stb_image_resize.h>
#include <stb/stb_image_write.h>
#include <stb/stb_truetype.h>
#include <stb/stb_sprintf.h>
#include <stb/stb_perlin.h>
#include <stb/stb_ds.h>
#include <stb/stb_vorbis.h>
`

// compiler compiles one source again and again, into one file after the other.
type compiler struct{ next int }

func (c *compiler) prepare(witness.Load) error {
	if _, err := os.Stat(compilerProgram); err != nil {
		return err
	}
	if err := enoughMemory(compilerRoom); err != nil {
		return err
	}
	return os.WriteFile(compilerSource, []byte(source), 0o600)
}

func (c *compiler) do(units []int, _ witness.Load) error {
	for range units {
		output, err := exec.Command(compilerProgram, "-c", compilerSource, "-o", c.object()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", compilerProgram, err, output)
		}
		c.next = (c.next + 1) % objects
	}
	return nil
}

func (c *compiler) object() string { return fmt.Sprintf("/tmp/object%d.o", c.next) }

func (c *compiler) close() {
	for c.next = range objects {
		os.Remove(c.object())
	}
}
