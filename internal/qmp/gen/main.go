// Command gen writes Go types and functions for the QMP commands and events
// listed in a file, from the recorded reply of query-qmp-schema. Type names in
// that reply are numbers: Go names come from the command and the member path,
// or from the list.
package main

import (
	"compress/gzip"
	"flag"
	"fmt"
	"go/format"
	"io"
	"os"

	"godwit.dev/godwit/internal/qmp/schema"
)

func main() {
	schemaFile := flag.String("schema", "", "gzipped reply of query-qmp-schema")
	wantedFile := flag.String("wanted", "", "list of commands and events")
	out := flag.String("out", "", "Go file to write")
	flag.Parse()
	if err := run(*schemaFile, *wantedFile, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(schemaFile, wantedFile, out string) error {
	s, err := readSchema(schemaFile)
	if err != nil {
		return err
	}
	list, err := os.Open(wantedFile)
	if err != nil {
		return err
	}
	defer list.Close()
	w, err := readWanted(list)
	if err != nil {
		return fmt.Errorf("%s: %w", wantedFile, err)
	}
	source, err := generate(s, w)
	if err != nil {
		return err
	}
	formatted, err := format.Source(source)
	if err != nil {
		return fmt.Errorf("generated code: %w", err)
	}
	return os.WriteFile(out, formatted, 0o644)
}

func readSchema(name string) (*schema.Schema, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(unzipped)
	if err != nil {
		return nil, err
	}
	return schema.Parse(text)
}
