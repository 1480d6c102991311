package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/term"

	"auditsink/internal/kafka"
	"auditsink/internal/postgres"
)

// stall is how long dev --once waits without anything being stored.
const stall = time.Minute

// screen is standard error: lines of text and, on a terminal, one line below
// them that changes. It may be used by any goroutine.
type screen struct {
	live  bool
	width int

	mu    sync.Mutex
	w     io.Writer
	shown bool // the changing line is on the terminal
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.live, s.width = true, 80
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			s.width = width
		}
	}
	return s
}

// Write writes whole lines, such as a logger's.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	return s.w.Write(p)
}

func (s *screen) printf(format string, args ...any) {
	// A terminal that is gone shall not stop the run.
	_, _ = fmt.Fprintf(s, format+"\n", args...)
}

// progress replaces the changing line, or writes an ordinary one.
func (s *screen) progress(line string) {
	if !s.live {
		s.printf("%s", line)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	_, _ = fmt.Fprintf(s.w, "%.*s", s.width-1, line)
	s.shown = true
}

// clear removes the changing line.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

func (s *screen) erase() {
	if s.shown {
		_, _ = fmt.Fprint(s.w, "\r\x1b[K")
		s.shown = false
	}
}

// watch looks at how far the worker has come. Its caller's goroutine owns it.
type watch struct {
	pool   *postgres.Pool
	broker *kadm.Client
	screen *screen
	// What earlier sessions have left.
	rows, quarantine, taken int64
}

// begin takes note of what is there already.
func (w *watch) begin(ctx context.Context) (err error) {
	if w.rows, w.quarantine, err = w.count(ctx); err != nil {
		return err
	}
	w.taken, err = w.position(ctx)
	return err
}

// count counts what this session has stored and quarantined.
func (w *watch) count(ctx context.Context) (stored, quarantined int64, err error) {
	err = w.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM audit_log), (SELECT count(*) FROM audit_quarantine)`).Scan(&stored, &quarantined)
	if err != nil {
		return 0, 0, fmt.Errorf("count what is stored: %w", postgres.Explain(err))
	}
	return stored - w.rows, quarantined - w.quarantine, nil
}

// position is the sum of all lanes' positions: how many records were ever
// taken, since the embedded broker's offsets have no holes here.
func (w *watch) position(ctx context.Context) (taken int64, err error) {
	err = w.pool.QueryRow(ctx, `SELECT coalesce(sum(next_offset), 0)::bigint FROM audit_lane WHERE topic = $1`, devTopic).Scan(&taken)
	if err != nil {
		return 0, fmt.Errorf("read the positions: %w", postgres.Explain(err))
	}
	return taken, nil
}

// end is the same for the broker: how many records there are.
func (w *watch) end(ctx context.Context) (records int64, err error) {
	offsets, err := w.broker.ListEndOffsets(ctx, devTopic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("read the end of the topic: %w", err)
	}
	offsets.Each(func(o kadm.ListedOffset) { records += o.Offset })
	return records, nil
}

// follow shows progress until ctx ends or, for once, all that was produced is
// taken. It returns when the producer has come to its end.
func (w *watch) follow(ctx context.Context, producer *kafka.Producer, producing <-chan error, once bool, lost <-chan struct{}) error {
	every := 5 * time.Second
	if w.screen.live {
		every = 500 * time.Millisecond
	}
	show := time.NewTicker(every)
	defer show.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	last, lastAt := w.taken, time.Now() // at the last line shown
	before, moved := w.taken, time.Now()
	produced := false
	for {
		select {
		case err := <-producing:
			if err != nil {
				return fmt.Errorf("produce sample events: %w", err)
			}
			produced = true
			producing = nil
			moved = time.Now()
		case <-lost:
			return errors.New("PostgreSQL is gone")
		case <-ctx.Done():
			if produced {
				return nil
			}
			return <-producing
		case <-look.C:
			if !once || !produced {
				continue
			}
			taken, err := w.position(ctx)
			var end int64
			if err == nil {
				end, err = w.end(ctx)
			}
			if err != nil {
				if ctx.Err() != nil {
					continue
				}
				return err
			}
			if taken >= end {
				return nil
			}
			if taken != before {
				before, moved = taken, time.Now()
			}
			if time.Since(moved) > stall {
				return fmt.Errorf("%d events aren't stored, and nothing was for %s", end-taken, stall)
			}
		case now := <-show.C:
			line, taken, err := w.line(ctx, producer.Acknowledged(), last, now.Sub(lastAt))
			if err != nil {
				if ctx.Err() != nil {
					continue
				}
				return err
			}
			w.screen.progress(line)
			last, lastAt = taken, now
		}
	}
}

// line says how far all has come.
func (w *watch) line(ctx context.Context, produced, last int64, since time.Duration) (line string, taken int64, err error) {
	if taken, err = w.position(ctx); err != nil {
		return "", 0, err
	}
	end, err := w.end(ctx)
	if err != nil {
		return "", 0, err
	}
	var quarantined int64
	err = w.pool.QueryRow(ctx, `SELECT count(*) FROM audit_quarantine`).Scan(&quarantined)
	if err != nil {
		return "", 0, fmt.Errorf("count the quarantine: %w", postgres.Explain(err))
	}
	quarantined -= w.quarantine
	return fmt.Sprintf("produced %d · stored %d · quarantined %d · %.0f rows/s · lag %d",
		produced, taken-w.taken-quarantined, quarantined, float64(taken-last)/since.Seconds(), end-taken), taken, nil
}
