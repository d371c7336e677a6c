// Package archtest holds the architecture: which package may import which,
// and what the pure core may not do. Its tests read the source of the whole
// module; the rules are the tables in rules_test.go. A change of a rule is a
// decision, and belongs in docs/decisions.
package archtest
