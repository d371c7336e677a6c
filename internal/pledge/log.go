package pledge

import (
	"fmt"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// subjectsMax is of how many migrations a machine knows what it was told. The
// server asks again for what a migration has left open, long after its end if
// need be, but no VM is moved so often meanwhile.
const subjectsMax = 8

// Log is what a machine was told to do: which commands it has begun,
// and what it has answered. The zero value is empty.
type Log struct {
	subjects []subjectLog // the newest last
}

// subjectLog is what was told of one migration, or of the VM's own life.
type subjectLog struct {
	subject string
	answers map[string]*godwitv1.Report // by the command's tag; nil while it is begun
}

// Begin notes a command, and gives its answer if it has one, or that it is
// known. If there are too many migrations the oldest goes, but never the
// present one.
func (l *Log) Begin(command *godwitv1.Command, present string) (answer *godwitv1.Report, known bool) {
	subject := l.of(command)
	if subject == nil {
		if len(l.subjects) >= subjectsMax {
			oldest := slices.IndexFunc(l.subjects, func(one subjectLog) bool { return one.subject != present })
			l.subjects = slices.Delete(l.subjects, oldest, oldest+1)
		}
		l.subjects = append(l.subjects, subjectLog{subject: command.GetSubject(), answers: map[string]*godwitv1.Report{}})
		subject = &l.subjects[len(l.subjects)-1]
	}
	tag := tagOf(command)
	if answer, known = subject.answers[tag]; !known {
		subject.answers[tag] = nil
	}
	return answer, known
}

// End notes the answer to a command.
func (l *Log) End(command *godwitv1.Command, answer *godwitv1.Report) {
	if subject := l.of(command); subject != nil {
		subject.answers[tagOf(command)] = answer
	}
}

// Forget makes a command a new one again.
func (l *Log) Forget(command *godwitv1.Command) {
	if subject := l.of(command); subject != nil {
		delete(subject.answers, tagOf(command))
	}
}

func (l *Log) of(command *godwitv1.Command) *subjectLog {
	for i := range l.subjects {
		if l.subjects[i].subject == command.GetSubject() {
			return &l.subjects[i]
		}
	}
	return nil
}

// tagOf tells the commands of a subject apart.
func tagOf(command *godwitv1.Command) string {
	return fmt.Sprintf("%d/%T", command.GetSequence(), command.GetOp())
}
