package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/event"
)

// inputError says what is wrong with a line, numbered from 1, of what a command
// was given to read: a mistake in its use.
func inputError(line int, wrong string) error {
	return &usageError{fmt.Errorf("line %d of the input %s", line, wrong)}
}

func newInspectCommand() *cobra.Command {
	var now time.Time
	var in inspection
	cmd := &cobra.Command{
		Use:   "inspect [FILE]",
		Short: "Say what would become of events, without any servers",
		Long: `Say what would become of events, without any servers.

Reads a record a line from FILE or standard input and prints for each a line of
JSON: the row's hash and the text that was hashed, or why the record would be
quarantined. Only a line feed ends a line; an empty line is an empty record.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := config.Load()
			if err != nil {
				return err
			}
			src, err := openInput(cmd, args)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, src.Close()) }()
			in.rules = rules(cfg)
			in.clock = time.Now
			if cmd.Flags().Changed("now") {
				in.clock = func() time.Time { return now }
			}
			return in.run(src, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&in.base64, "base64", false, "each line is the record's bytes in base64")
	cmd.Flags().TimeVar(&now, "now", time.Time{}, []string{time.RFC3339Nano}, "the time to judge timestamps by, RFC 3339 (default: the clock)")
	return cmd
}

// openInput opens the file that args name, or standard input.
func openInput(cmd *cobra.Command, args []string) (io.ReadCloser, error) {
	if len(args) == 0 || args[0] == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, fmt.Errorf("open the input: %w", err)
	}
	return f, nil
}

// inspection says what becomes of each line of an input.
type inspection struct {
	base64 bool
	rules  event.Rules
	clock  func() time.Time
}

// verdict is the answer for one record.
type verdict struct {
	Outcome string  `json:"outcome"`
	Hash    string  `json:"hash,omitempty"`
	Prehash string  `json:"prehash,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Detail  *string `json:"detail,omitempty"`
}

func (in *inspection) run(src io.Reader, dst io.Writer) error {
	r := &lines{r: bufio.NewReaderSize(src, 64<<10)}
	w := bufio.NewWriter(dst)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	decoder := event.NewDecoder(in.rules)
	var text bytes.Buffer
	for n := 1; ; n++ {
		// Whoever types the events wants each answer before the next.
		if r.r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return fmt.Errorf("write the answers: %w", err)
			}
		}
		more, err := r.next()
		if err != nil {
			return errors.Join(fmt.Errorf("read line %d of the input: %w", n, err), w.Flush())
		}
		if !more {
			break
		}
		if err := in.read(&text, r); err != nil {
			if corrupt := base64.CorruptInputError(0); errors.As(err, &corrupt) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = inputError(n, "isn't base64 (RFC 4648, padded)")
			} else {
				err = fmt.Errorf("read line %d of the input: %w", n, err)
			}
			return errors.Join(err, w.Flush())
		}
		now := in.clock()
		row, q := decoder.Take(&event.Record{Timestamp: now.UnixMilli(), Value: text.Bytes()}, now)
		v := verdict{Outcome: "row"}
		if q != nil {
			v = verdict{Outcome: "quarantine", Reason: q.Reason.String(), Detail: &q.Detail}
		} else {
			v.Hash, v.Prehash = string(row.Hash[:]), string(row.Prehash)
		}
		if err := out.Encode(v); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the answers: %w", err)
	}
	return nil
}

// read puts the record of the current line into text. Of one that is too large
// it keeps just enough to tell.
func (in *inspection) read(text *bytes.Buffer, line io.Reader) error {
	if in.base64 {
		line = base64.NewDecoder(base64.StdEncoding, line)
	}
	text.Reset()
	if _, err := text.ReadFrom(io.LimitReader(line, int64(in.rules.MaxBytes)+1)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, line)
	return err
}

// lines parts a stream at each "\n", whatever the lengths. It is the io.Reader
// of the current line.
type lines struct {
	r     *bufio.Reader
	ended bool // the current line was read to its end
}

// next goes to the next line, once the current one was read to its end, and
// tells whether there is one. Nothing after the last "\n" is no line.
func (l *lines) next() (bool, error) {
	_, err := l.r.Peek(1)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	l.ended = false
	return err == nil, err
}

// Read reads of the current line, without its "\n".
func (l *lines) Read(p []byte) (int, error) {
	if l.ended || len(p) == 0 {
		return 0, io.EOF
	}
	if _, err := l.r.Peek(1); err != nil {
		l.ended = errors.Is(err, io.EOF)
		return 0, err
	}
	chunk, err := l.r.Peek(min(l.r.Buffered(), len(p)))
	if err != nil {
		return 0, err
	}
	skip := 0
	if i := bytes.IndexByte(chunk, '\n'); i >= 0 {
		chunk, skip, l.ended = chunk[:i], 1, true
	}
	n := copy(p, chunk)
	if _, err := l.r.Discard(n + skip); err != nil {
		return n, err
	}
	if l.ended {
		return n, io.EOF
	}
	return n, nil
}
