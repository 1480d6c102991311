package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// What a terminal is told. The other screen keeps what was there before.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	goHome      = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watchStatus shows the status again and again, until ctx ends, which is no failure: in place on a terminal, one below the other elsewhere.
func watchStatus(ctx context.Context, out io.Writer, r *statusReader, interval time.Duration, asJSON bool) (err error) {
	terminal, ok := out.(*os.File)
	live := ok && !asJSON && term.IsTerminal(int(terminal.Fd()))
	if live {
		if _, err := io.WriteString(out, enterScreen); err != nil {
			return err
		}
		defer func() {
			if _, left := io.WriteString(out, leaveScreen); err == nil {
				err = left
			}
		}()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		s := r.read(ctx)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how it ends
		}
		switch {
		case asJSON:
			err = json.NewEncoder(out).Encode(s)
		case live:
			var page strings.Builder
			if err = s.print(&page); err == nil {
				width, height := screenSize(terminal)
				_, err = io.WriteString(out, redraw(page.String(), width, height)) // in one piece, so that it doesn't flicker
			}
		default:
			if err = s.print(out); err == nil {
				_, err = io.WriteString(out, "\n")
			}
		}
		if err != nil {
			return fmt.Errorf("show the status: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func screenSize(terminal *os.File) (width, height int) {
	width, height, err := term.GetSize(int(terminal.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// redraw is what puts a page over the one before, on a terminal of this size. Lines are cut off, since those that wrap would push others away.
func redraw(page string, width, height int) string {
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	if len(lines) > height {
		hidden := len(lines) - height + 1
		lines = append(lines[:height-1:height-1], fmt.Sprintf("… %d more lines: make the terminal higher, or leave --watch out", hidden))
	}
	var b strings.Builder
	b.WriteString(goHome)
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(shorten(line, max(width-1, 1))) // a full line would leave the cursor on its last character, for clearLine to clear
		b.WriteString(clearLine)
	}
	b.WriteString(clearBelow)
	return b.String()
}
