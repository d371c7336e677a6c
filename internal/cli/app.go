package cli

import (
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"godwit.dev/godwit/api/client"
)

// App is the world as the commands see it: streams, environment, clock, and
// what the global flags say.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
	// Program is the command line of this process, for a monitor that starts
	// another one with it; without one nothing is supervised.
	Program []string

	server  client.Config
	json    bool
	noColor bool
}

// OS gives the App of the running process.
func OS() *App {
	return &App{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now, Program: os.Args}
}

// env gives an environment variable, or fallback where it is empty.
func (a *App) env(name, fallback string) string {
	if value := a.Getenv(name); value != "" {
		return value
	}
	return fallback
}

// call runs do with a client of the server that the flags name. The context
// ends after limit; zero means never.
func (a *App) call(ctx context.Context, limit time.Duration, do func(context.Context, *client.Client) error) error {
	c, err := client.Dial(a.server)
	if err != nil {
		return hinted(err, "see to --server, --ca, --cert and --key, or to their GODWIT_ variables; the folder \"admin\" of the server's data has all three files")
	}
	defer c.Close()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return do(ctx, c)
}

// terminal tells whether standard output is one, and how many columns it has.
func (a *App) terminal() (columns int, ok bool) {
	file, ok := a.Out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	if err != nil || columns <= 0 {
		columns = 80 // of a terminal that does not tell, such as a serial line
	}
	return columns, true
}

// style gives the colours for standard output: none unless it is a terminal
// and nobody asked for none (see no-color.org).
func (a *App) style() style {
	_, terminal := a.terminal()
	return style{on: terminal && !a.noColor && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"}
}

type style struct{ on bool }

func (s style) paint(code, text string) string {
	if !s.on {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) bold(text string) string { return s.paint("1", text) }

// state colours a state or phase by what it means for its reader.
func (s style) state(state string) string {
	switch state {
	case "running", "up", "succeeded":
		return s.paint("32", state)
	case "failed", "down", "aborted", "needs-operator", "rolling-back":
		return s.paint("31", state)
	case "stopped":
		return state
	}
	return s.paint("33", state)
}
