package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/partitions"
)

func newPartitionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "partitions",
		Short: "See, predict and steer what becomes of the table partitions",
		RunE:  needsSubcommand,
	}
	c.AddCommand(newPartitionsListCommand(), newPartitionsStatsCommand(), newPartitionsPlanCommand(), newPartitionsApplyCommand(),
		newPartitionsHoldCommand(), newPartitionsReleaseCommand(), newPartitionsRestoreCommand())
	return c
}

func newPartitionsPlanCommand() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Tell what maintenance of the table partitions would do now, and change nothing",
		Long: `plan tells which table partitions are missing by AUDITSINK_PARTITION_INTERVAL and AUDITSINK_PARTITION_AHEAD (give it the settings of the workers), and what
else their leader would do. It changes nothing, and a standby can answer it. Exit code 1 where something is in the way of what is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return planPartitions(cmd, asJSON, false) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newPartitionsApplyCommand() *cobra.Command {
	var asJSON, execute, retire bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Do what maintenance of the table partitions would do now; without --execute only tell it",
		Long: `apply creates the table partitions that are missing by AUDITSINK_PARTITION_INTERVAL and AUDITSINK_PARTITION_AHEAD (give it the settings of the workers),
while events go on being stored. Without --execute it is a dry run and changes nothing. With AUDITSINK_RETENTION_ENFORCE=true, or --retire, it also goes on with what
has expired: each run takes a partition as far on its way out as the grace period allows.

It takes the leader's lease for as long as it works; a worker leads again afterwards. The same command can always be given again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !execute {
				return planPartitions(cmd, asJSON, retire)
			}
			return applyPartitions(cmd, asJSON, retire)
		},
	}
	cmd.Flags().BoolVar(&execute, "execute", false, "do it")
	cmd.Flags().BoolVar(&retire, "retire", false, "also remove what has expired, though AUDITSINK_RETENTION_ENFORCE is false")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// planPartitions prints what would be done.
func planPartitions(cmd *cobra.Command, asJSON, retire bool) error {
	cfg, pool, err := openPartitions(cmd.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	cfg.RetentionEnforce = cfg.RetentionEnforce || retire
	r, err := lookAtPartitions(cmd.Context(), cfg, pool)
	if err != nil {
		return err
	}
	r.DryRun = true
	return r.print(cmd.OutOrStdout(), asJSON)
}

// applyPartitions does it, and prints what was done, also where an error ended it, and what is left.
func applyPartitions(cmd *cobra.Command, asJSON, retire bool) error {
	ctx := cmd.Context()
	cfg, pool, err := openPartitions(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	cfg.RetentionEnforce = cfg.RetentionEnforce || retire
	var done []fmt.Stringer
	lease := partitions.Lease{Duration: cfg.LeaderLease, Holder: operator()}
	failed := lease.Seize(ctx, pool.Pool, func(ctx context.Context, term partitions.Term) (err error) {
		work := maintenance(cfg, pool)
		work.Changed = func(ctx context.Context) { invalidateCache(ctx, cmd, cfg, pool) }
		done, err = work.Change(ctx, term)
		return err
	})
	if ctx.Err() != nil {
		failed = fmt.Errorf("interrupted; the same command does what is left: %w", context.Cause(ctx))
	}
	r, err := lookAtPartitions(context.WithoutCancel(ctx), cfg, pool)
	if err != nil {
		r = &partitionsReport{}
	}
	r.Create, r.Done = []partitions.Step{}, []partitions.Action{}
	for _, did := range done {
		switch did := did.(type) {
		case partitions.Step:
			r.Create = append(r.Create, did)
		case partitions.Action:
			r.Done = append(r.Done, did)
		}
	}
	if failed != nil && inTheWay(failed) {
		failed = nil // the report names it
	}
	return errors.Join(r.print(cmd.OutOrStdout(), asJSON), postgres.Explain(failed), err)
}

// openPartitions loads the settings and opens the database where maintenance does, and checks that its schema is ours.
func openPartitions(ctx context.Context) (config.Config, *postgres.Pool, error) {
	return openChecked(ctx, maintenanceURL)
}

// partitionsReport is what plan and apply print.
type partitionsReport struct {
	DryRun     bool                `json:"dry_run"`
	Create     []partitions.Step   `json:"create"`               // or what was created
	Replace    []partitions.Bounds `json:"replace"`              // empty months ahead, in whose place days shall be
	Keep       []partitions.Bounds `json:"keep"`                 // likewise, but with rows
	Retire     []partitions.Fate   `json:"retire"`               // what has expired and is under no hold, attached or detached
	Next       *partitions.Fate    `json:"next,omitempty"`       // what expires next
	Enforced   bool                `json:"retention_enforced"`   // whether what has expired goes
	Done       []partitions.Action `json:"done,omitempty"`       // by apply, besides what was created
	ReadyUntil time.Time           `json:"ready_until,omitzero"` // as it is now
	Problem    string              `json:"problem,omitempty"`
	problem    error
}

// lookAtPartitions gathers what maintenance would do now. What keeps a partition from being created is part of the report.
func lookAtPartitions(ctx context.Context, cfg config.Config, pool *postgres.Pool) (*partitionsReport, error) {
	look, err := partitions.Look(ctx, pool.Pool, time.Now(), schedule(cfg))
	if err != nil && !inTheWay(err) {
		return nil, postgres.Explain(err)
	}
	r := &partitionsReport{Create: listed(look.Create), Replace: listed(look.Replace), Keep: listed(look.Keep), ReadyUntil: look.ReadyUntil, problem: err}
	if err != nil {
		r.Problem = err.Error()
	}
	r.Enforced, r.Retire = cfg.RetentionEnforce, []partitions.Fate{}
	fates, err := partitions.Outlook(ctx, pool.Pool, time.Now(), retention(cfg))
	if err != nil {
		return nil, postgres.Explain(err)
	}
	for _, f := range fates {
		switch {
		case f.Expired(time.Now()):
			r.Retire = append(r.Retire, f)
		case !f.Due.IsZero() && len(f.Holds) == 0 && (r.Next == nil || f.Due.Before(r.Next.Due)):
			r.Next = &f
		}
	}
	return r, nil
}

// inTheWay tells whether an error names what keeps partitions from being created, and nothing else failed.
func inTheWay(err error) bool {
	var taken *partitions.NameTakenError
	var def *partitions.DefaultPartitionError
	return errors.As(err, &taken) || errors.As(err, &def)
}

// listed is never nil, so that JSON says [].
func listed[T any](all []T) []T { return append([]T{}, all...) }

// print writes the report, and returns as an error what is in the way.
func (r *partitionsReport) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return errors.Join(printJSON(out, r), r.problem)
	}
	r.printSchedule(out)
	r.printRetention(out)
	_, err := fmt.Fprintln(out, r.summary())
	return errors.Join(err, r.problem)
}

// printSchedule writes a line for each partition that comes, or makes place for one that does.
func (r *partitionsReport) printSchedule(out io.Writer) {
	for _, s := range r.Create {
		fmt.Fprintln(out, s) //nolint:errcheck // the last line tells
	}
	for _, b := range r.Replace {
		fmt.Fprintf(out, "the leader removes %s, which is empty: days shall be in its place\n", within(b)) //nolint:errcheck // the last line tells
	}
	for _, b := range r.Keep {
		fmt.Fprintf(out, "%s stays, though days shall be in its place: it holds rows\n", within(b)) //nolint:errcheck // the last line tells
	}
}

// printRetention writes a line for each partition that goes, and what was done with those that went.
func (r *partitionsReport) printRetention(out io.Writer) {
	for _, did := range r.Done {
		fmt.Fprintln(out, did) //nolint:errcheck // the last line tells
	}
	for _, f := range r.Retire {
		what := "the leader retires"
		switch {
		case !r.Enforced:
			what = "would go, if AUDITSINK_RETENTION_ENFORCE were true:"
		case f.State == partitions.Detached:
			what = "is detached:"
		}
		fmt.Fprintf(out, "%s %s; %s\n", what, within(f.Bounds), f.Why) //nolint:errcheck // the last line tells
	}
	if r.Next != nil {
		fmt.Fprintf(out, "next to expire: %s; %s\n", within(r.Next.Bounds), r.Next.Why) //nolint:errcheck // the last line tells
	}
}

// summary is the last line.
func (r *partitionsReport) summary() string {
	text := fmt.Sprintf("%d table partitions created", len(r.Create))
	if r.DryRun {
		text = fmt.Sprintf("dry run, nothing was changed: %d table partitions to create (auditsink partitions apply --execute)", len(r.Create))
	}
	if !r.ReadyUntil.IsZero() {
		text += "; ready until " + r.ReadyUntil.UTC().Format(time.RFC3339)
	}
	return text
}

// within names a partition and its range, for people.
func within(b partitions.Bounds) string {
	return fmt.Sprintf("%s from %s to %s", b.Name, b.From.Format(time.RFC3339), b.To.Format(time.RFC3339))
}
