package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"auditsink/internal/postgres"
	"auditsink/sink"
)

func newQuarantineListCommand() *cobra.Command {
	var c chosen
	state, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List quarantined records, the newest first, without their content",
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := c.filter(nil)
			if err != nil {
				return err
			}
			switch state {
			case sink.StateNew, sink.StateRedriven, sink.StateDiscarded:
				filter.State = state
			case "all":
			default:
				return &usageError{fmt.Errorf("--state is new, redriven, discarded or all, not %q", state)}
			}
			_, pool, err := openQuarantine(cmd.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			counts, err := sink.CountQuarantine(cmd.Context(), pool, filter)
			if err != nil {
				return postgres.Explain(err)
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			l := &listing{out: out, json: asJSON}
			l.begin()
			err = sink.ListQuarantine(cmd.Context(), pool, filter, c.limit, l.add)
			if err == nil {
				err = l.end(counts)
			}
			return postgres.Explain(errors.Join(err, out.Flush()))
		},
	}
	c.flags(cmd, "reason", 100)
	cmd.Flags().StringVar(&state, "state", sink.StateNew, "only those that are new, redriven or discarded, or all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// listing prints records as they come, however many.
type listing struct {
	out   *bufio.Writer // keeps its first error for Flush
	json  bool
	table *tabwriter.Writer
	shown int64
}

func (l *listing) begin() {
	if l.json {
		l.out.WriteString(`{"records": [`) //nolint:errcheck,gosec // Flush tells
		return
	}
	l.table = tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(l.table, "ID\tLANE\tTOPIC/PARTITION\tOFFSET\tSTATE\tREASON\tTIMESTAMP\tQUARANTINED\tBYTES\tDETAIL") //nolint:errcheck // Flush tells
}

func (l *listing) add(q sink.Quarantined) error {
	l.shown++
	if l.json {
		text, err := json.Marshal(q)
		if err != nil {
			return fmt.Errorf("print record %d: %w", q.ID, err)
		}
		separator := ",\n  "
		if l.shown == 1 {
			separator = separator[1:]
		}
		_, err = fmt.Fprintf(l.out, "%s%s", separator, text)
		return err
	}
	_, err := fmt.Fprintf(l.table, "%d\t%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", q.ID, q.LaneID, laneName(q), q.Offset, q.State, q.Reason,
		optionalTime(q.RecordTimestamp), q.RecordedAt.Format(time.RFC3339), optional(q.ValueBytes), q.Detail)
	if err == nil && l.shown%1000 == 0 { // a table of millions would be held in memory whole
		err = l.table.Flush()
	}
	return err
}

// end prints what the records add up to.
func (l *listing) end(counts []sink.QuarantineCount) error {
	total, byReason, byState := int64(0), map[string]int64{}, map[string]int64{}
	for _, n := range counts {
		total += n.Records
		byReason[n.Reason] += n.Records
		byState[n.State] += n.Records
	}
	if l.json {
		text, err := json.Marshal(map[string]any{"shown": l.shown, "total": total, "by_reason": byReason, "by_state": byState})
		if err == nil {
			_, err = fmt.Fprintf(l.out, "\n],\n%s\n", text[1:])
		}
		return err
	}
	if err := l.table.Flush(); err != nil {
		return err
	}
	line := fmt.Sprintf("%d records", total)
	if total > 0 {
		line += ": " + tally(byReason)
	}
	if len(byState) > 1 {
		line += "; " + tally(byState)
	}
	if l.shown < total {
		line += fmt.Sprintf("\nonly the newest %d are shown: raise --limit, 0 for all, or choose by reason, lane, topic or time", l.shown)
	}
	_, err := fmt.Fprintln(l.out, line)
	return err
}

// tally prints counts, the largest first.
func tally(counts map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		if counts[a] != counts[b] {
			return int(counts[b] - counts[a])
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, counts[name])
	}
	return strings.Join(names, ", ")
}

// laneName is the topic and the partition of a record, as far as they are known.
func laneName(q sink.Quarantined) string {
	if q.Topic == nil || q.Partition == nil {
		return "-"
	}
	return fmt.Sprintf("%s/%d", *q.Topic, *q.Partition)
}

func optional(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

func optionalTime(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.Format("2006-01-02T15:04:05.000Z07:00")
}

func newQuarantineShowCommand() *cobra.Command {
	asJSON, valueOnly := false, false
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a quarantined record, its content included, and what was done to it",
		Long: `show prints all there is about a quarantined record, its content included: as text where it is that and nothing in it would upset a
terminal, and else in base64. --value writes the bytes of its value and nothing else, as they came from Kafka: to try what would become
of it now,

  auditsink quarantine show ID --value | base64 -w 0 | auditsink inspect --base64`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter, err := (&chosen{}).filter(args)
			if err != nil {
				return err
			}
			if asJSON && valueOnly {
				return &usageError{errors.New("--json or --value: which of them?")}
			}
			_, pool, err := openQuarantine(cmd.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			record, err := sink.ShowQuarantined(cmd.Context(), pool, filter.IDs[0])
			if err != nil {
				return postgres.Explain(err)
			}
			switch {
			case valueOnly:
				if record.Value == nil {
					cmd.PrintErrln("note: the record is a tombstone: it has no value")
				}
				_, err = cmd.OutOrStdout().Write(record.Value)
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), recordJSON(record))
			}
			return printRecord(cmd.OutOrStdout(), record)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&valueOnly, "value", false, "write the bytes of the value, and nothing else")
	return cmd
}

// content is a part of a record as Kafka had it.
type content []byte

// MarshalJSON gives {"text": …} where that is printable and {"base64": …} where it isn't; null where there is nothing.
func (c content) MarshalJSON() ([]byte, error) {
	switch {
	case c == nil:
		return []byte("null"), nil
	case c.printable():
		return json.Marshal(map[string]string{"text": string(c)})
	}
	return json.Marshal(map[string][]byte{"base64": c})
}

// printable tells whether it is text that does nothing to a terminal but show.
func (c content) printable() bool {
	const joiner, nonJoiner = '\u200d', '\u200c' // of emoji, and of several scripts
	return utf8.Valid(c) && !strings.ContainsFunc(string(c), func(r rune) bool {
		return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != joiner && r != nonJoiner
	})
}

// inline is for a place within a line.
func (c content) inline() string {
	switch {
	case c == nil:
		return "none"
	case c.printable():
		return strconv.Quote(string(c))
	}
	return "base64 " + base64.StdEncoding.EncodeToString(c)
}

// recordJSON is a record as --json shows it.
func recordJSON(r *sink.QuarantinedRecord) any {
	type header struct {
		Name  content `json:"name"`
		Value content `json:"value"`
	}
	headers := make([]header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = header{h.Name, h.Value}
	}
	return struct {
		sink.Quarantined
		TopicID *string                 `json:"topic_id"`
		Key     content                 `json:"key"`
		Headers []header                `json:"headers"`
		Value   content                 `json:"value"`
		History []sink.QuarantineChange `json:"history"`
	}{r.Quarantined, r.TopicID, r.Key, headers, r.Value, append([]sink.QuarantineChange{}, r.Changes...)}
}

func printRecord(out io.Writer, r *sink.QuarantinedRecord) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	say := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) //nolint:errcheck // Flush tells
	}
	say("record", "%d", r.ID)
	say("lane", "%d", r.LaneID)
	say("topic/partition", "%s", laneName(r.Quarantined))
	if r.TopicID != nil {
		say("topic ID", "%s", *r.TopicID)
	}
	say("offset", "%d", r.Offset)
	say("timestamp", "%s", optionalTime(r.RecordTimestamp))
	say("reason", "%s", r.Reason)
	say("detail", "%s", r.Detail)
	say("state", "%s", r.State)
	say("quarantined", "%s", r.RecordedAt.Format(time.RFC3339Nano))
	for _, c := range r.Changes {
		say(c.Kind, "%s by %s (%s): %s", c.RecordedAt.Format(time.RFC3339Nano), c.Client, c.DoneBy, c.Reason)
	}
	say("key", "%s", content(r.Key).inline())
	for _, h := range r.Headers {
		say("header", "%s: %s", content(h.Name).inline(), content(h.Value).inline())
	}
	value, form := content(r.Value), "as text"
	switch {
	case value == nil:
		say("value", "none: a tombstone")
		return w.Flush()
	case !value.printable():
		form = "in base64"
	}
	say("value", "%d bytes, %s:", len(value), form)
	if err := w.Flush(); err != nil {
		return err
	}
	if !value.printable() {
		_, err := fmt.Fprintln(out, base64.StdEncoding.EncodeToString(value))
		return err
	}
	_, err := fmt.Fprintf(out, "%s\n", value)
	return err
}
