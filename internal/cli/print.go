package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"godwit.dev/godwit/internal/wire"
)

// printLine writes a message as one line of JSON.
func (a *App) printLine(message proto.Message) error {
	data, err := wire.CompactJSON(message)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", data)
	return err
}

// printJSON writes any value as indented JSON.
func (a *App) printJSON(value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", data)
	return err
}

// printOne writes a message as JSON or, for people, by text.
func (a *App) printOne(message proto.Message, text func(io.Writer)) error {
	if !a.json {
		return a.printText(text)
	}
	data, err := wire.CompactJSON(message)
	if err != nil {
		return err
	}
	return a.printJSON(data)
}

// printText writes in one piece, so that a pipe that closes early is noticed.
func (a *App) printText(text func(io.Writer)) error {
	var buffer bytes.Buffer
	text(&buffer)
	_, err := a.Out.Write(buffer.Bytes())
	return err
}

// printList writes {"name": [items]} or a table.
func printList[M proto.Message](a *App, name string, items []M, rows func([]M) table) error {
	if !a.json {
		return a.printText(rows(items).write)
	}
	list := make([]json.RawMessage, 0, len(items))
	for _, item := range items {
		data, err := wire.CompactJSON(item)
		if err != nil {
			return err
		}
		list = append(list, data)
	}
	return a.printJSON(map[string]any{name: list})
}

// table is rows of cells, the first of them the heading.
type table struct {
	style  style
	indent string
	rows   [][]string
	states int // the column of states, coloured; zero for none
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// write aligns the columns with two spaces between them; an empty cell shows
// as "-".
func (t table) write(w io.Writer) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 1)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range t.rows {
		var line strings.Builder
		line.WriteString(t.indent)
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			shown := cell
			switch {
			case n == 0:
				shown = t.style.bold(cell)
			case t.states > 0 && i == t.states:
				shown = t.style.state(cell)
			}
			line.WriteString(shown)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(w, line.String())
	}
}

// sheet writes key and value lines and headings, as `show` commands do.
type sheet struct {
	w     io.Writer
	style style
}

const keyWidth = 14

// row leaves out what is empty.
func (s sheet) row(key, value string) {
	if value != "" {
		fmt.Fprintf(s.w, "%-*s%s\n", keyWidth, key, value)
	}
}

func (s sheet) heading(text string) { fmt.Fprintf(s.w, "\n%s\n", s.style.bold(text)) }

func (s sheet) table(t table) {
	t.style, t.indent = s.style, "  "
	t.write(s.w)
}
