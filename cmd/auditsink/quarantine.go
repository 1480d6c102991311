package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/metrics"
	"auditsink/partitions"
	"auditsink/sink"
)

func newQuarantineCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "quarantine",
		Short: "Look at the records that could not be rows, take them again, or discard them",
		RunE:  needsSubcommand,
	}
	c.AddCommand(newQuarantineListCommand(), newQuarantineShowCommand(), newRedriveCommand(), newDiscardCommand())
	return c
}

// chosen are the flags that choose quarantined records.
type chosen struct {
	reasons      []string
	lanes        []int32
	topic        string
	since, until moment
	limit        int
}

func (f *chosen) flags(cmd *cobra.Command, reasonFlag string, limit int) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.reasons, reasonFlag, nil, "only those quarantined for this reason; may be given more than once")
	flags.Int32SliceVar(&f.lanes, "lane", nil, "only those of the lane with this ID (see auditsink lanes list); may be given more than once")
	flags.StringVar(&f.topic, "topic", "", "only those of this topic")
	flags.Var(&f.since, "since", "only those quarantined since then: RFC 3339, or a duration back from now, such as 2h")
	flags.Var(&f.until, "until", "only those quarantined before then, likewise")
	flags.IntVar(&f.limit, "limit", limit, "at most so many records, 0 for all")
}

// filter is what the flags and the IDs choose.
func (f *chosen) filter(ids []string) (sink.Filter, error) {
	filter := sink.Filter{Reasons: f.reasons, Lanes: f.lanes, Topic: f.topic, Since: f.since.Time, Until: f.until.Time}
	var known []string
	for _, r := range event.Reasons() {
		known = append(known, r.String())
	}
	for _, r := range f.reasons {
		if !slices.Contains(known, r) {
			return filter, &usageError{fmt.Errorf("%q is no reason of a quarantine; there are %s", r, strings.Join(known, ", "))}
		}
	}
	if !f.since.IsZero() && !f.until.IsZero() && !f.since.Before(f.until.Time) {
		return filter, &usageError{errors.New("--since is not before --until, and no record is in between")}
	}
	if f.limit < 0 {
		return filter, &usageError{errors.New("--limit is below 0")}
	}
	for _, text := range ids {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return filter, &usageError{fmt.Errorf("%q is no ID of a quarantined record: they are whole numbers, see `auditsink quarantine list`", text)}
		}
		filter.IDs = append(filter.IDs, id)
	}
	return filter, nil
}

// moment is a time given by a flag.
type moment struct{ time.Time }

// Set reads RFC 3339, or a duration back from now, with or without the word ago.
func (m *moment) Set(text string) error {
	if back, err := time.ParseDuration(strings.TrimSuffix(text, " ago")); err == nil && back >= 0 {
		m.Time = time.Now().Add(-back)
		return nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return errors.New("want RFC 3339, such as 2026-11-15T10:30:00Z, or a duration back from now, such as 2h or 30m")
	}
	m.Time = at
	return nil
}

// String is what the help shows as the default.
func (m *moment) String() string {
	if m.IsZero() {
		return ""
	}
	return m.Format(time.RFC3339Nano)
}

// Type is what the help calls it.
func (m *moment) Type() string { return "time" }

// openQuarantine loads the settings and opens the database, and checks that its schema is ours.
func openQuarantine(ctx context.Context) (config.Config, *postgres.Pool, error) {
	return openChecked(ctx, func(cfg config.Config) config.Secret { return cfg.PostgresURL })
}

// change holds what redrive and discard have in common.
type change struct {
	chosen
	all, dryRun, json bool
	why               string
}

func (c *change) flags(cmd *cobra.Command, reasonFlag string) {
	c.chosen.flags(cmd, reasonFlag, 0)
	cmd.Flags().BoolVar(&c.all, "all", false, "all new records there are")
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "change nothing, only tell what would be")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
}

// read makes a change of the flags and the IDs; some choice there must be.
func (c *change) read(ids []string) (sink.Change, error) {
	filter, err := c.filter(ids)
	if err != nil {
		return sink.Change{}, err
	}
	choice := len(ids)+len(c.reasons)+len(c.lanes) > 0 || c.topic != "" || !c.since.IsZero() || !c.until.IsZero()
	if choice == c.all {
		return sink.Change{}, &usageError{errors.New("which records? Name their IDs, or choose by reason, lane, topic or time, or else give --all")}
	}
	if strings.ToValidUTF8(c.why, "") != c.why {
		return sink.Change{}, &usageError{errors.New("the reason given is not UTF-8")}
	}
	return sink.Change{Filter: filter, Limit: c.limit, Reason: strings.TrimSpace(c.why), DryRun: c.dryRun}, nil
}

// apply makes the change: it looks at the IDs first, so that nothing is done where one was mistyped, and tells what was done also where
// an error ended it.
func (c *change) apply(cmd *cobra.Command, in sink.Change, state string, do func(ctx context.Context, cfg config.Config, pool *postgres.Pool, in sink.Change) (sink.Changed, error)) error {
	ctx := cmd.Context()
	cfg, pool, err := openQuarantine(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if len(in.Filter.IDs) > 0 {
		already, err := sink.CheckIDs(ctx, pool, in.Filter.IDs, state)
		if err != nil {
			return postgres.Explain(err)
		}
		for _, id := range already {
			cmd.PrintErrf("note: record %d was %s before\n", id, state)
		}
	}
	in.Client, in.Attempts, in.Delay = operator(), cfg.PoolRetryAttempts, cfg.PoolRetryDelay
	done, err := do(ctx, cfg, pool, in)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted; the same command does what is left: %w", err)
	}
	return errors.Join(c.print(cmd.OutOrStdout(), state, done), postgres.Explain(err))
}

// print tells what was done, or would be.
func (c *change) print(out io.Writer, state string, done sink.Changed) error {
	kept := int64(0)
	for _, n := range done.Kept {
		kept += n
	}
	if c.json {
		result := map[string]any{"dry_run": c.dryRun, state: done.Moved, "elsewhere": done.Elsewhere}
		if state == sink.StateRedriven {
			result["taken"], result["quarantined"], result["quarantined_by_reason"] = done.Moved+kept, kept, done.Kept
			if done.Kept == nil {
				result["quarantined_by_reason"] = map[string]int64{}
			}
		}
		return json.NewEncoder(out).Encode(result)
	}
	line := fmt.Sprintf("%d records %s", done.Moved, state)
	if state == sink.StateRedriven {
		line = fmt.Sprintf("%d records taken, %d redriven, %d still quarantined", done.Moved+kept, done.Moved, kept)
		if kept > 0 {
			line += ": " + tally(done.Kept)
		}
	}
	if done.Elsewhere > 0 {
		line += fmt.Sprintf("; %d were redriven or discarded by somebody else meanwhile", done.Elsewhere)
	}
	if c.dryRun {
		line = "dry run, nothing was changed: " + line
	}
	_, err := fmt.Fprintln(out, line)
	return err
}

// operator names whoever runs this process.
func operator() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return name + "@" + owner()
}

func newRedriveCommand() *cobra.Command {
	var c change
	unsigned := false
	cmd := &cobra.Command{
		Use:   "redrive [ID…]",
		Short: "Take quarantined records again, and store those that are rows now",
		Long: `redrive takes quarantined records again, once what was wrong is mended: the settings of the events (give it those of the
workers: AUDITSINK_EVENT_MAX_BYTES, AUDITSINK_EVENT_SIGNATURE_KEY, AUDITSINK_RETENTION_HORIZON_DAYS), the schema, or auditsink itself.

A record that is a row now moves to audit_log with its own lane and offset, once, whoever else tries at the same time and whatever
breaks: the same command can be given again. One that still breaks a rule stays, with its reason brought up to date. Choices combine
with AND; only new records are taken. An ID that there is not, or of a discarded record, is an error, and then nothing is done; one
that was redriven before is noted and left. That records stay in quarantine is no failure (exit code 0).

--dry-run takes the records too but stores nothing, and so can't know what the database itself would refuse.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := c.read(args)
			if err != nil {
				return err
			}
			in.Unsigned = unsigned
			return c.apply(cmd, in, sink.StateRedriven, func(ctx context.Context, cfg config.Config, pool *postgres.Pool, in sink.Change) (sink.Changed, error) {
				maintenance := pool
				if maintenanceURL(cfg) != cfg.PostgresURL {
					var err error
					if maintenance, err = openDatabase(ctx, cfg, maintenanceURL(cfg)); err != nil {
						return sink.Changed{}, err
					}
					defer maintenance.Close()
				}
				m := metrics.New(version, event.Reasons()) // nobody asks a command for them
				done, err := sink.New(pool, cfg.CopyConns, rules(cfg), lateDays(cfg, maintenance, partitions.NewWatch(maintenance.Pool, m, schedule(cfg), retention(cfg)), zap.NewNop()), m, zap.NewNop()).Redrive(ctx, in)
				if done.Kept[event.SignatureMismatch.String()] > 0 && cfg.EventSignatureKey == "" && !unsigned {
					cmd.PrintErrln("note: AUDITSINK_EVENT_SIGNATURE_KEY is not set, so records whose signature was found wrong stay; set it, or store them unchecked with --unsigned")
				}
				return done, err
			})
		},
	}
	c.flags(cmd, "reason")
	cmd.Flags().StringVar(&c.why, "reason-note", "", "why, as it goes on record (default: that the record no longer breaks its rule)")
	cmd.Flags().BoolVar(&unsigned, "unsigned", false, "without a signature key, take also records whose signature was found wrong")
	return cmd
}

func newDiscardCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "discard [ID…] --reason TEXT",
		Short: "Mark quarantined records as of no use, and keep the record of why",
		Long: `discard marks quarantined records as discarded, so that they are no longer listed as new, nor taken by redrive. Their bytes stay, and who
discarded each, when and why goes on record (see quarantine show). Choices combine with AND; only new records are discarded. An ID that
there is not, or of a redriven record, is an error, and then nothing is done; one that was discarded before is noted and left.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := c.read(args)
			if err != nil {
				return err
			}
			if in.Reason == "" {
				return &usageError{errors.New("why? --reason TEXT goes on record with each record discarded")}
			}
			for _, r := range event.Reasons() {
				if in.Reason == r.String() { // or all that the other choices leave would go
					return &usageError{fmt.Errorf("--reason says why the records are discarded; to choose those quarantined for %s, give --quarantined-for %[1]s", r)}
				}
			}
			return c.apply(cmd, in, sink.StateDiscarded, func(ctx context.Context, _ config.Config, pool *postgres.Pool, in sink.Change) (sink.Changed, error) {
				return sink.Discard(ctx, pool, in)
			})
		},
	}
	c.flags(cmd, "quarantined-for")
	cmd.Flags().StringVar(&c.why, "reason", "", "why, as it goes on record (required)")
	return cmd
}
